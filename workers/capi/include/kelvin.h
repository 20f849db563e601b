// Kelvin's client for engines in C and C++: find, read and store the KV cache of token prefixes.
//
// Calls wait for the store; any thread may make them, several at a time. A call that answers other than
// KELVIN_STATUS_OK has left its outputs alone; kelvin_last_error() tells more, on the same thread. Pointers are not
// null unless it is said.
//
// Made from workers/capi/src by cbindgen: change it there.

#ifndef KELVIN_H
#define KELVIN_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

// How a call ended.
typedef enum KelvinStatus {
  // It did what it says.
  KELVIN_STATUS_OK = 0,
  // An argument makes no sense: nothing was done.
  KELVIN_STATUS_INVALID = 1,
  // The store is away or overloaded: the same call can succeed later.
  KELVIN_STATUS_UNAVAILABLE = 2,
  // The store refused, and will again.
  KELVIN_STATUS_REFUSED = 3,
  // A block's bytes are not those that were committed. It is a miss; the store is told.
  KELVIN_STATUS_DAMAGED = 4,
  // A fault of this library.
  KELVIN_STATUS_INTERNAL = 5,
} KelvinStatus;

// How payload moves.
typedef enum KelvinTransport {
  // In place, in the store's memory.
  KELVIN_TRANSPORT_SHM = 0,
  // Through the store's data port.
  KELVIN_TRANSPORT_TCP = 1,
  // Inside gRPC.
  KELVIN_TRANSPORT_GRPC = 2,
} KelvinTransport;

// What became of one block of a call.
typedef enum KelvinBlockStatus {
  // Nothing to say: the run did not end early.
  KELVIN_BLOCK_STATUS_NONE = 0,
  // Leased for reading.
  KELVIN_BLOCK_STATUS_LEASED = 1,
  // Not stored, nor being filled.
  KELVIN_BLOCK_STATUS_MISSING = 2,
  // Being filled by another client.
  KELVIN_BLOCK_STATUS_FILLING = 3,
  // Reserved: yours to fill.
  KELVIN_BLOCK_STATUS_RESERVED = 4,
  // Stored already.
  KELVIN_BLOCK_STATUS_ALREADY_STORED = 5,
  // Committed.
  KELVIN_BLOCK_STATUS_STORED = 6,
  // Stored before with other bytes; the first copy stays.
  KELVIN_BLOCK_STATUS_CONFLICT = 7,
  // No slot is free and none can be evicted.
  KELVIN_BLOCK_STATUS_NO_SPACE = 8,
  // The lease had ended.
  KELVIN_BLOCK_STATUS_STALE_LEASE = 9,
  // The bytes in the slot are not those that were announced.
  KELVIN_BLOCK_STATUS_CHECKSUM_MISMATCH = 10,
  // Done.
  KELVIN_BLOCK_STATUS_DONE = 11,
  // Not looked at, because an earlier block of the call ended the run.
  KELVIN_BLOCK_STATUS_SKIPPED = 12,
  // The parent is neither stored nor being filled.
  KELVIN_BLOCK_STATUS_NO_PARENT = 13,
  // One lease too many for this client.
  KELVIN_BLOCK_STATUS_LEASE_LIMIT = 14,
} KelvinBlockStatus;

// Blocks of one model in one store.
typedef struct KelvinNamespace KelvinNamespace;

// The right to read one block.
typedef struct KelvinReadLease KelvinReadLease;

// The right to fill one block.
typedef struct KelvinWriteLease KelvinWriteLease;

// A store, a model, and what a block of it looks like. All zero but for what is needed is fine; text is UTF-8.
typedef struct KelvinSpec {
  // "http://host:port".
  const char *endpoint;
  // Who this is, for the store's logs; may be null.
  const char *client_name;
  // Bearer token; may be null.
  const char *token;
  // Public name of the model.
  const char *model;
  // Digest of the model's weights, lowercase hex.
  const char *model_digest;
  // Engine whose state format the blocks hold.
  const char *engine;
  // The build of it.
  const char *engine_build;
  // Order of the bytes inside a block.
  const char *layout;
  // Type of one KV element.
  const char *dtype;
  // Tokens a block.
  uint32_t block_tokens;
  // Bytes a block.
  uint64_t block_bytes;
  // Which slice of the model, of how many; 0 of 0 is the whole.
  uint32_t tensor_rank;
  // See `tensor_rank`.
  uint32_t tensor_size;
  // Which stage of the model, of how many; 0 of 0 is the whole.
  uint32_t pipeline_rank;
  // See `pipeline_rank`.
  uint32_t pipeline_size;
  // Never map the store's memory.
  bool no_shared_memory;
} KelvinSpec;

// Identity of a block and of all blocks before it. Any 16 bytes that name both will do.
typedef struct KelvinHash {
  // The bytes.
  uint8_t bytes[16];
} KelvinHash;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Connects to a store and agrees with it on what a block is. `*out` is to be closed.
//
// # Safety
// `spec` and `out` are valid, and the texts in `spec` end with a zero.
enum KelvinStatus kelvin_open(const struct KelvinSpec *spec, struct KelvinNamespace **out);

// Ends the session: every lease returns, and those still held are good for their release alone. Null is fine.
//
// # Safety
// From `kelvin_open`, and not used any more by any thread.
void kelvin_close(struct KelvinNamespace *namespace_);

// How payload moves now, to `*out`.
//
// # Safety
// Both are valid.
enum KelvinStatus kelvin_transport(const struct KelvinNamespace *namespace_, enum KelvinTransport *out);

// Hashes of the whole blocks of a prompt. `extra` is whatever else decides the KV (LoRA, images, salt); null with 0
// bytes for nothing. `hashes` has room for `token_count / block_tokens`. Never waits for the store.
//
// # Safety
// The arrays have what is said of them.
enum KelvinStatus kelvin_hash_blocks(const struct KelvinNamespace *namespace_,
                                     const uint32_t *tokens,
                                     size_t token_count,
                                     const uint8_t *extra,
                                     size_t extra_bytes,
                                     struct KelvinHash *hashes);

// How many of the first of these blocks are stored, to `*blocks`.
//
// # Safety
// The array has what is said of it, and `blocks` is valid.
enum KelvinStatus kelvin_match(const struct KelvinNamespace *namespace_,
                               const struct KelvinHash *hashes,
                               size_t count,
                               size_t *blocks);

// Leases the first of these blocks that are stored: `*acquired` of them, to `leases`, which has room for `count`.
// Should the first block be in the making, waits for it up to `wait_ms`. `*stopped`, unless null, says why the run
// ended before the last. The leases are to be released.
//
// # Safety
// The arrays have what is said of them, and `acquired` is valid.
enum KelvinStatus kelvin_acquire(const struct KelvinNamespace *namespace_,
                                 const struct KelvinHash *hashes,
                                 size_t count,
                                 uint64_t wait_ms,
                                 struct KelvinReadLease **leases,
                                 size_t *acquired,
                                 enum KelvinBlockStatus *stopped);

// A leased block's bytes, checked: valid until the lease is released. The first time costs a pass over them.
//
// # Safety
// All are valid.
enum KelvinStatus kelvin_read_bytes(const struct KelvinReadLease *lease,
                                    const uint8_t **bytes,
                                    size_t *length);

// Gives leases back, in the background, and sets them to null. Nulls among them are skipped.
//
// # Safety
// From `kelvin_acquire`, each once, and their bytes are not used any more.
void kelvin_release(struct KelvinReadLease **leases, size_t count);

// Reserves the blocks of a run behind `parent` (null: the start of a sequence). One status a block, to `statuses`;
// where it is KELVIN_BLOCK_STATUS_RESERVED, a lease to fill, to `leases`, else null. Both have room for `count`.
//
// # Safety
// The arrays have what is said of them; `parent` is null or valid.
enum KelvinStatus kelvin_reserve(const struct KelvinNamespace *namespace_,
                                 const struct KelvinHash *parent,
                                 const struct KelvinHash *hashes,
                                 size_t count,
                                 struct KelvinWriteLease **leases,
                                 enum KelvinBlockStatus *statuses);

// A reserved block's bytes, to fill, all of them: valid until the lease is committed or aborted. One thread at a
// time.
//
// # Safety
// All are valid.
enum KelvinStatus kelvin_write_bytes(struct KelvinWriteLease *lease,
                                     uint8_t **bytes,
                                     size_t *length);

// Commits filled leases, parents first: one status a block, to `statuses`. Whatever it answers, unless it is
// KELVIN_STATUS_INVALID, the leases are used up and set to null.
//
// # Safety
// From `kelvin_reserve`, each once; both arrays have `count` places.
enum KelvinStatus kelvin_commit(const struct KelvinNamespace *namespace_,
                                struct KelvinWriteLease **leases,
                                size_t count,
                                enum KelvinBlockStatus *statuses);

// Gives reservations back unfilled, in the background, and sets them to null. Nulls among them are skipped.
//
// # Safety
// From `kelvin_reserve`, each once.
void kelvin_abort(struct KelvinWriteLease **leases, size_t count);

// Why the last call of this thread that failed did so, in words; "" when none has. Valid until the thread's next
// call.
const char *kelvin_last_error(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KELVIN_H */
