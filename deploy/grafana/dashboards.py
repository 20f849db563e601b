"""The five dashboards."""

from panels import bars, dashboard, figure, graph, query, row, variable
from queries import (
    FILL_BELOW,
    FILL_DRAM,
    HIT_RATIO,
    HIT_RATIO_BY_TIER,
    REQUESTED,
    or_none,
    quantile,
    rate,
    share,
    total,
)

PERCENT = "percentunit"


def percentiles(histogram, legend="", by="", match=""):
    """P50, P95 and P99 of a histogram."""
    return [
        query(quantile(q, histogram, by, match), f"p{name} {legend}".strip())
        for q, name in [(0.5, "50"), (0.95, "95"), (0.99, "99")]
    ]


def overview():
    """What a person on call looks at first."""
    ttft = "kelvin_router_time_to_first_token_seconds"
    return dashboard(
        "overview",
        "overview",
        "Whether requests are served, how fast, and how much of their prompts the cache had.",
        [
            figure(
                "Token hit ratio",
                HIT_RATIO,
                PERCENT,
                "Tokens found by Match, of those asked for.",
            ),
            figure("Requests", rate("kelvin_router_requests_total"), "reqps", "Requests answered, of all routes."),
            figure(
                "Time to first token, P95",
                quantile(0.95, ttft),
                "s",
                "From the request's arrival to its first token, native workers.",
            ),
            figure("Inter-token latency, P95", quantile(0.95, "kelvin_router_inter_token_seconds"), "s"),
            figure(
                "Decode workers ready",
                total("kelvin_router_workers", match='role="decode",state="ready"'),
                text="Without one every request for the native model is refused.",
                low_is_bad=True,
                bad=1,
            ),
            figure(
                "Prefill tokens saved",
                rate("kelvin_router_prefill_saved_tokens_total"),
                "short",
                "Prompt tokens a second that nobody had to evaluate.",
            ),
            graph(
                "Hit ratio by tier",
                [query(HIT_RATIO_BY_TIER, "{{tier}}")],
                PERCENT,
                "Stacked shares of all tokens that were asked for; what is left above them missed.",
                stacked=True,
                top=1,
                width=12,
            ),
            graph(
                "Misses by reason",
                [query(rate("kelvin_store_miss_tokens_total", by="reason"), "{{reason}}")],
                "short",
                "Tokens a second that were asked for and not there, by why the first of them was not.",
                stacked=True,
                width=12,
            ),
            graph(
                "Requests by status",
                [query(rate("kelvin_router_requests_total", by="code"), "{{code}}")],
                "reqps",
                stacked=True,
            ),
            graph("Time to first token", percentiles(ttft), "s"),
            graph(
                "How full the tiers are",
                [query(FILL_DRAM, "{{tier}}"), query(FILL_BELOW, "{{tier}}")],
                PERCENT,
                "A cache that is full is as it should be; what counts is what is evicted.",
                top=1,
            ),
        ],
    )


def store():
    """The store's own affairs."""
    call = "kelvin_store_call_seconds"
    return dashboard(
        "store",
        "store",
        "What the store was asked, what it had, and what its calls and its memory cost.",
        [
            row("Tokens"),
            graph(
                "Tokens asked for",
                [
                    query(rate("kelvin_store_hit_tokens_total"), "hit"),
                    query(rate("kelvin_store_filling_tokens_total"), "being filled"),
                    query(rate("kelvin_store_miss_tokens_total"), "missed"),
                ],
                "short",
                "Tokens a second; asked for = hit + being filled + missed.",
                stacked=True,
            ),
            graph(
                "Hit ratio under other policies",
                [query("avg by (policy) (kelvin_policy_hit_ratio)", "{{policy}}")],
                PERCENT,
                "Ghosts of each policy on what is asked of memory of the present size.",
                top=1,
            ),
            graph(
                "Hit ratio with other memory",
                [query("avg by (times) (kelvin_memory_hit_ratio)", "{{times}} times the memory")],
                PERCENT,
                "The live miss-ratio curve: what more memory would buy.",
                top=1,
            ),
            row("Memory"),
            graph(
                "Pool",
                [
                    query(total("kelvin_store_used_bytes"), "used"),
                    query(total("kelvin_store_capacity_bytes"), "capacity"),
                    query(total("kelvin_store_pinned_bytes"), "pinned"),
                ],
                "bytes",
            ),
            graph(
                "Blocks evicted from memory",
                [query(or_none(rate("kelvin_store_evicted_blocks_total", by="policy, reason")), "{{policy}}: {{reason}}")],
                "short",
                "Blocks a second.",
                stacked=True,
            ),
            graph(
                "Blocks and what finds them",
                [
                    query(total("kelvin_store_blocks"), "blocks"),
                    query(total("kelvin_store_explained_blocks"), "blocks whose end is remembered"),
                ],
            ),
            graph(
                "Memory beside the blocks",
                [
                    query(total("kelvin_store_index_bytes"), "index"),
                    query(total("kelvin_store_metrics_memory_bytes"), "metrics"),
                    query(total("kelvin_catalog_disk_bytes"), "catalog, on disk"),
                ],
                "bytes",
            ),
            row("Leases and pins"),
            graph(
                "Leases",
                [query(total("kelvin_store_leases", by="kind"), "{{kind}}")],
                text="Read leases keep blocks from being evicted, write leases are blocks being filled.",
            ),
            graph(
                "Oldest lease and pin",
                [
                    query("max by (kind) (kelvin_store_lease_oldest_age_seconds)", "{{kind}} lease"),
                    query("max by (kind) (kelvin_store_pin_oldest_age_seconds)", "{{kind}} pin"),
                ],
                "s",
            ),
            graph(
                "Ended by their time",
                [
                    query(rate("kelvin_store_leases_expired_total"), "leases"),
                    query(rate("kelvin_store_pins_expired_total"), "pins"),
                ],
                "short",
                "A lease that expires was not given back: a client hangs, or is gone without its socket.",
            ),
            row("Calls and payload"),
            graph("Calls", [query(rate(f"{call}_count", by="verb"), "{{verb}}")], "reqps", stacked=True),
            graph("Calls, P99", [query(quantile(0.99, call, by="verb"), "{{verb}}")], "s", "Waits of Acquire included."),
            graph("Calls by way", [query(rate(f"{call}_count", by="via"), "{{via}}")], "reqps"),
            graph(
                "Payload by transport",
                [query(rate("kelvin_transport_transfer_bytes_sum", by="transport, direction"), "{{transport}} {{direction}}")],
                "Bps",
                "Of shared memory nothing moves: it is what was leased or committed in place.",
            ),
            graph(
                "Transfers, P95",
                [query(quantile(0.95, "kelvin_transport_transfer_seconds", by="transport, direction"), "{{transport}} {{direction}}")],
                "s",
            ),
            graph(
                "Faults",
                [
                    query(rate("kelvin_store_conflicts_total"), "conflicts"),
                    query(rate("kelvin_store_checksum_failures_total"), "wrong checksums at commit"),
                    query(rate("kelvin_store_damaged_blocks_total"), "damaged blocks dropped"),
                    query(rate("kelvin_store_no_space_total"), "no space"),
                ],
                "short",
                "Each is a process or a device that does what it must not; no space is a store that is too small.",
            ),
        ],
    )


def tiers():
    """Where blocks live and how they move."""
    return dashboard(
        "tiers",
        "tiers",
        "DRAM, NVMe and the object store: how full, how fast, how healthy.",
        [
            graph("Fill", [query(FILL_DRAM, "{{tier}}"), query(FILL_BELOW, "{{tier}}")], PERCENT, top=1),
            graph(
                "Tokens hit, by tier",
                [query(rate("kelvin_store_hit_tokens_total", by="tier"), "{{tier}}")],
                "short",
                "Tokens a second, by the hottest tier that had them.",
                stacked=True,
            ),
            graph("Blocks below memory", [query(total("kelvin_tier_blocks", by="tier"), "{{tier}}")]),
            row("Moves"),
            graph(
                "Bytes moved",
                [query(rate("kelvin_tier_move_bytes_sum", by="from, to"), "{{from}} to {{to}}")],
                "Bps",
            ),
            graph(
                "Time of a move, P95",
                [query(quantile(0.95, "kelvin_tier_move_seconds", by="from, to"), "{{from}} to {{to}}")],
                "s",
            ),
            graph(
                "Blocks offloaded and onboarded",
                [
                    query(rate("kelvin_tier_offloaded_blocks_total", by="tier"), "to {{tier}}"),
                    query(rate("kelvin_tier_onboarded_blocks_total", by="tier"), "from {{tier}}"),
                ],
            ),
            graph(
                "Queues",
                [
                    query(total("kelvin_tier_queue", by="tier, direction"), "{{tier}} {{direction}}"),
                    query(total("kelvin_store_offload_queue_blocks"), "offload"),
                ],
                text="Requests that wait for a device, and blocks that wait to be copied down.",
            ),
            graph(
                "Refused by full queues",
                [query(rate("kelvin_tier_refused_total", by="tier, direction"), "{{tier}} {{direction}}")],
                text="A read that is refused is a miss; a write that is refused is a block that is not offloaded.",
            ),
            graph(
                "Evicted or not admitted",
                [
                    query(or_none(rate("kelvin_tier_evicted_blocks_total", by="tier, reason")), "{{tier}}: {{reason}}"),
                    query(rate("kelvin_tier_not_admitted_blocks_total", by="tier"), "{{tier}}: not admitted"),
                    query(rate("kelvin_tier_uncopied_blocks_total", by="tier"), "{{tier}}: evicted without a copy"),
                ],
            ),
            row("Health"),
            graph(
                "Devices that work",
                [
                    query("min by (tier) (kelvin_tier_healthy)", "{{tier}}"),
                    query("min by (file) (kelvin_nvme_file_healthy)", "NVMe file {{file}}"),
                ],
                top=1,
            ),
            graph(
                "Errors",
                [
                    query(rate("kelvin_tier_errors_total", by="tier"), "{{tier}} errors"),
                    query(rate("kelvin_tier_timeouts_total", by="tier"), "{{tier}} timeouts"),
                    query(rate("kelvin_tier_damaged_blocks_total", by="tier"), "{{tier}} damaged blocks"),
                ],
            ),
            graph(
                "Out of service",
                [
                    query(total("kelvin_tier_quarantined_slots", by="tier"), "{{tier}} slots in quarantine"),
                    query(total("kelvin_store_parked_slots", by="tier"), "{{tier}} slots parked"),
                ],
                text="Slots that gave wrong bytes, and slots that a dead client may still write to.",
            ),
            row("Object store"),
            graph("Requests", [query(rate("kelvin_object_requests_total", by="kind"), "{{kind}}")], "reqps", stacked=True),
            graph(
                "Trouble",
                [
                    query(rate("kelvin_object_retries_total"), "retries"),
                    query(rate("kelvin_object_hedges_total"), "second requests for slow ones"),
                    query(rate("kelvin_object_timeouts_total"), "timeouts"),
                    query(rate("kelvin_object_refusals_total"), "refused by the breaker"),
                    query(rate("kelvin_object_errors_total"), "errors"),
                    query("max by (direction) (kelvin_object_breaker_open)", "breaker open: {{direction}}"),
                ],
            ),
            graph(
                "Cost, estimated",
                [
                    query(f"{rate('kelvin_object_request_cost_dollars_total')} * 86400 * 30", "requests, a month at this rate"),
                    query(total("kelvin_object_storage_monthly_cost_dollars"), "storage, a month"),
                ],
                "currencyUSD",
                "By list prices; what the provider's bill says counts.",
            ),
            graph(
                "Packs",
                [query(total("kelvin_object_live_bytes"), "live bytes in packs")],
                "bytes",
            ),
            graph(
                "Catalog",
                [query(total("kelvin_catalog_records"), "records")],
                text="Blocks that a restart finds again.",
            ),
            graph(
                "Lost or restored",
                [
                    query(total("kelvin_tier_restored_blocks_total", by="tier"), "{{tier}} restored at the start"),
                    query(total("kelvin_tier_lost_blocks_total", by="tier"), "{{tier}} lost at the start"),
                ],
            ),
        ],
    )


def router():
    """Who goes where, and what they got."""
    ttft = "kelvin_router_time_to_first_token_seconds"
    judged = rate("kelvin_router_judged_prompt_tokens_total", by="target")
    return dashboard(
        "router",
        "router",
        "Requests, latencies, decisions and what they were worth; native workers and other engines' servers.",
        [
            row("Requests"),
            graph("By route", [query(rate("kelvin_router_requests_total", by="route"), "{{route}}")], "reqps", stacked=True),
            graph("By status", [query(rate("kelvin_router_requests_total", by="code"), "{{code}}")], "reqps", stacked=True),
            graph("In flight", [query(total("kelvin_router_requests_in_flight"), "requests")]),
            graph(
                "Waiting for their turn",
                [query(total("kelvin_router_queue_depth", by="class"), "{{class}}")],
                text="By the length of what is not cached of their prompts.",
                stacked=True,
            ),
            graph(
                "Wait for a turn, P95",
                [query(quantile(0.95, "kelvin_router_queue_wait_seconds", by="class"), "{{class}}")],
                "s",
            ),
            graph(
                "Time to first token, P95",
                [query(quantile(0.95, ttft, by="prefill"), "prefill: {{prefill}}")],
                "s",
            ),
            graph("Inter-token latency", percentiles("kelvin_router_inter_token_seconds"), "s"),
            graph(
                "Errors, retries",
                [
                    query(or_none(rate("kelvin_router_errors_total", by="kind")), "{{kind}}"),
                    query(rate("kelvin_router_retries_total"), "retries"),
                    query(rate("kelvin_router_store_degraded_total"), "without the store"),
                ],
            ),
            row("What the cache was worth"),
            graph(
                "Prompt tokens",
                [
                    query(rate("kelvin_router_prompt_tokens_total"), "asked"),
                    query(rate("kelvin_router_prompt_tokens_cached_total"), "cached"),
                    query(rate("kelvin_router_generated_tokens_total"), "generated"),
                ],
                "short",
                "Tokens a second.",
            ),
            graph(
                "Cached share of the prompts, by model",
                [
                    query(
                        share(
                            rate("kelvin_router_model_prompt_tokens_cached_total", by="model"),
                            rate("kelvin_router_model_prompt_tokens_total", by="model"),
                        ),
                        "{{model}}",
                    )
                ],
                PERCENT,
                top=1,
            ),
            graph(
                "Prefill saved",
                [query(rate("kelvin_router_prefill_saved_seconds_total"), "seconds of evaluation, a second")],
                "short",
                "By the rates that were measured: so many workers would have been busy with it.",
            ),
            graph(
                "Expected and seen hits",
                [
                    query(
                        share(rate("kelvin_router_predicted_hit_tokens_total", by="target"), judged),
                        "expected: {{target}}",
                    ),
                    query(share(rate("kelvin_router_observed_hit_tokens_total", by="target"), judged), "seen: {{target}}"),
                ],
                PERCENT,
                "Share of the prompt tokens that the router thought to be cached, and that were.",
                top=1,
            ),
            graph(
                "Prefill tokens evaluated and saved",
                [
                    query(rate("kelvin_router_prefill_tokens_total"), "evaluated"),
                    query(rate("kelvin_router_prefill_saved_tokens_total"), "saved"),
                ],
                stacked=True,
            ),
            graph("Decisions", [query(rate("kelvin_router_decisions_total", by="prefill"), "prefill: {{prefill}}")], stacked=True),
            graph(
                "Requests to other engines",
                [query(rate("kelvin_router_backend_decisions_total", by="cache"), "{{cache}}")],
                "reqps",
                "By how the cache of the chosen server was known: exact, degraded, or fallback.",
                stacked=True,
            ),
            graph(
                "Answers moved to another worker or engine",
                [
                    query(rate("kelvin_router_migrations_total"), "moves"),
                    query(rate("kelvin_router_migration_recomputed_tokens_total"), "tokens evaluated again"),
                    query(rate("kelvin_router_backend_streams_stayed_total", by="why"), "not moved: {{why}}"),
                ],
                "short",
                "A second; each move is a worker or a server that was lost in the middle of an answer.",
            ),
            graph(
                "Who says what the store has",
                [query(rate("kelvin_router_store_lookups_total", by="by"), "{{by}}")],
                "reqps",
                "The router's index of it, the store itself, or nobody while it is away.",
                stacked=True,
            ),
            graph(
                "The index beside the store's own word",
                [query(rate("kelvin_router_store_compared_blocks_total", by="index"), "{{index}}")],
                "short",
                "Blocks of prompts a second: the same in both, fewer in the index, or more.",
                stacked=True,
            ),
            row("Workers and servers"),
            graph("Workers", [query(total("kelvin_router_workers", by="role, state"), "{{role}}: {{state}}")]),
            graph("Servers of other engines", [query(total("kelvin_router_backends", by="state"), "{{state}}")]),
            graph(
                "How their caches are known",
                [query(total("kelvin_router_feeds", by="mode"), "{{mode}}")],
                text="exact by KV events, degraded when some were missed, fallback by what was sent there.",
            ),
            graph(
                "Time to first token of other engines",
                percentiles("kelvin_router_backend_first_token_seconds"),
                "s",
            ),
            graph(
                "Inter-token latency of other engines",
                percentiles("kelvin_router_backend_inter_token_seconds"),
                "s",
                "Between two pieces of a stream.",
            ),
            graph(
                "The directory of other engines' caches",
                [query(total("kelvin_router_directory_blocks"), "blocks")],
            ),
            graph(
                "The router's memory for it",
                [
                    query(total("kelvin_router_directory_memory_bytes"), "directory"),
                    query(total("kelvin_router_store_memory_bytes"), "indexes of stores"),
                ],
                "bytes",
            ),
        ],
    )


def tenants():
    """Who uses the cache, and what each gets of it."""
    match = 'tenant=~"$tenant"'
    both = 'tenant=~"$tenant",model=~"$model"'
    hit = rate("kelvin_store_hit_tokens_total", by="tenant", match=both)
    asked = rate("kelvin_store_requested_tokens_total", by="tenant", match=both)
    hit_of_model = rate("kelvin_store_hit_tokens_total", by="model", match=both)
    asked_of_model = rate("kelvin_store_requested_tokens_total", by="model", match=both)
    return dashboard(
        "tenants",
        "tenants",
        "By tenant and model: what they ask for, what they hit, what they occupy.",
        [
            figure("Tokens asked for", rate("kelvin_store_requested_tokens_total", match=both), text="Tokens a second."),
            figure("Sessions", total("kelvin_store_sessions", match=match)),
            figure("Namespaces", total("kelvin_store_namespaces", match=match), text="At most 64 a tenant have lines of their own."),
            figure("Memory used", total("kelvin_store_used_bytes", match=match), "bytes"),
            figure("Leases", total("kelvin_store_leases", match=match)),
            figure("Pinned", total("kelvin_store_pinned_bytes", match=match), "bytes"),
            graph("Hit ratio by tenant", [query(share(hit, asked), "{{tenant}}")], PERCENT, top=1),
            graph("Hit ratio by model", [query(share(hit_of_model, asked_of_model), "{{model}}")], PERCENT, top=1),
            graph("Tokens asked for, by model", [query(asked_of_model, "{{model}}")], stacked=True),
            graph(
                "Misses by reason",
                [query(rate("kelvin_store_miss_tokens_total", by="reason", match=match), "{{reason}}")],
                "short",
                "Tokens a second.",
                stacked=True,
            ),
            bars("Blocks stored, by model", total("kelvin_store_blocks", by="model", match=both), "{{model}}"),
            bars(
                "Memory used of what a tenant has",
                f"{total('kelvin_store_used_bytes', by='tenant', match=match)} / {total('kelvin_store_capacity_bytes', by='tenant', match=match)}",
                "{{tenant}}",
                PERCENT,
                top=1,
            ),
            graph(
                "Payload",
                [
                    query(rate("kelvin_store_shm_leased_bytes_total", by="tenant", match=match), "{{tenant}}: read in place"),
                    query(rate("kelvin_store_shm_committed_bytes_total", by="tenant", match=match), "{{tenant}}: filled in place"),
                    query(rate("kelvin_store_tcp_read_bytes_total", by="tenant", match=match), "{{tenant}}: read over TCP"),
                    query(rate("kelvin_store_grpc_read_bytes_total", by="tenant", match=match), "{{tenant}}: read over gRPC"),
                ],
                "Bps",
                width=12,
            ),
            graph(
                "Prompt tokens at the router, by model",
                [query(rate("kelvin_router_model_prompt_tokens_total", by="model", match='model=~"$model"'), "{{model}}")],
                stacked=True,
                width=12,
            ),
        ],
        [
            variable("tenant", "Tenant", "kelvin_store_used_bytes"),
            variable("model", "Model", "kelvin_store_requested_tokens_total"),
        ],
    )


ALL = {"overview": overview, "store": store, "tiers": tiers, "router": router, "tenants": tenants}
