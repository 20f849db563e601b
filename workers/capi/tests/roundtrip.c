// Stores, finds and reads blocks through the header alone. Arguments: endpoint, transport expected, socket or not.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kelvin.h"

#define BLOCKS 3
#define TOKENS 4
#define BYTES 65536

static void check(int line, bool holds, const char *what) {
  if (!holds) {
    fprintf(stderr, "line %d: %s: %s\n", line, what, kelvin_last_error());
    exit(1);
  }
}
#define CHECK(condition) check(__LINE__, (condition), #condition)

int main(int argc, char **argv) {
  CHECK(argc == 3);
  struct KelvinSpec spec = {
      .endpoint = argv[1],
      .client_name = "roundtrip",
      .model = "m",
      .model_digest = "d",
      .engine = "c",
      .engine_build = "1",
      .layout = "bytes",
      .dtype = "u8",
      .block_tokens = TOKENS,
      .block_bytes = BYTES,
      .no_shared_memory = strcmp(argv[2], "shm") != 0,
  };
  struct KelvinNamespace *ns = NULL;
  CHECK(kelvin_open(&spec, NULL) == KELVIN_STATUS_INVALID && strstr(kelvin_last_error(), "out is null"));
  struct KelvinSpec wrong = spec;
  wrong.dtype = NULL;
  CHECK(kelvin_open(&wrong, &ns) == KELVIN_STATUS_INVALID && strstr(kelvin_last_error(), "dtype is null"));
  wrong = spec;
  wrong.endpoint = "http://127.0.0.1:1";
  CHECK(kelvin_open(&wrong, &ns) == KELVIN_STATUS_UNAVAILABLE && ns == NULL);
  CHECK(kelvin_open(&spec, &ns) == KELVIN_STATUS_OK);

  enum KelvinTransport transport;
  CHECK(kelvin_transport(ns, &transport) == KELVIN_STATUS_OK);
  CHECK(transport == (spec.no_shared_memory ? KELVIN_TRANSPORT_TCP : KELVIN_TRANSPORT_SHM));

  // A prompt of its own for each transport.
  uint32_t tokens[BLOCKS * TOKENS + 1];
  for (int i = 0; i < BLOCKS * TOKENS + 1; i++) tokens[i] = 100 * (uint32_t)transport + (uint32_t)i;
  struct KelvinHash hashes[BLOCKS];
  CHECK(kelvin_hash_blocks(ns, tokens, BLOCKS * TOKENS + 1, NULL, 0, hashes) == KELVIN_STATUS_OK);
  CHECK(memcmp(&hashes[0], &hashes[1], sizeof hashes[0]) != 0);

  size_t found = 9;
  CHECK(kelvin_match(ns, hashes, BLOCKS, &found) == KELVIN_STATUS_OK && found == 0);

  struct KelvinWriteLease *filling[BLOCKS];
  enum KelvinBlockStatus statuses[BLOCKS];
  CHECK(kelvin_reserve(ns, NULL, hashes, BLOCKS, filling, statuses) == KELVIN_STATUS_OK);
  for (int i = 0; i < BLOCKS; i++) {
    uint8_t *bytes = NULL;
    size_t length = 0;
    CHECK(statuses[i] == KELVIN_BLOCK_STATUS_RESERVED);
    CHECK(kelvin_write_bytes(filling[i], &bytes, &length) == KELVIN_STATUS_OK && length == BYTES);
    memset(bytes, 'a' + i, length);
  }
  // The last one is given up.
  kelvin_abort(&filling[2], 1);
  CHECK(filling[2] == NULL);
  CHECK(kelvin_commit(ns, filling, BLOCKS, statuses) == KELVIN_STATUS_INVALID && filling[0] != NULL);
  CHECK(kelvin_commit(ns, filling, 2, statuses) == KELVIN_STATUS_OK && filling[0] == NULL);
  CHECK(statuses[0] == KELVIN_BLOCK_STATUS_STORED && statuses[1] == KELVIN_BLOCK_STATUS_STORED);

  CHECK(kelvin_reserve(ns, NULL, hashes, 1, filling, statuses) == KELVIN_STATUS_OK);
  CHECK(statuses[0] == KELVIN_BLOCK_STATUS_ALREADY_STORED && filling[0] == NULL);

  struct KelvinReadLease *leases[BLOCKS];
  enum KelvinBlockStatus stopped = KELVIN_BLOCK_STATUS_NONE;
  CHECK(kelvin_match(ns, hashes, BLOCKS, &found) == KELVIN_STATUS_OK && found == 2);
  CHECK(kelvin_acquire(ns, hashes, BLOCKS, 0, leases, &found, &stopped) == KELVIN_STATUS_OK);
  // The third went back in the background.
  CHECK(found == 2);
  CHECK(stopped == KELVIN_BLOCK_STATUS_MISSING || stopped == KELVIN_BLOCK_STATUS_FILLING);
  for (size_t i = 0; i < found; i++) {
    const uint8_t *bytes = NULL;
    size_t length = 0;
    CHECK(kelvin_read_bytes(leases[i], &bytes, &length) == KELVIN_STATUS_OK && length == BYTES);
    for (size_t at = 0; at < length; at++) CHECK(bytes[at] == 'a' + i);
  }
  kelvin_release(leases, found);
  CHECK(leases[0] == NULL && leases[1] == NULL);
  kelvin_release(NULL, 5);
  kelvin_close(ns);
  kelvin_close(NULL);
  puts("round trip done");
  return 0;
}
