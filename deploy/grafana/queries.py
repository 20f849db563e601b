"""Expressions that several panels share."""


def rate(metric, by="", match=""):
    """Events a second, summed up."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped}(rate({metric}{{{match}}}[$__rate_interval]))".replace("{}", "")


def total(metric, by="", match=""):
    """A gauge, summed up."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped}({metric}{{{match}}})".replace("{}", "")


def share(part, whole):
    """A part of a whole; nothing of nothing is nothing, not an error."""
    return f"({part}) / ({whole} > 0) or ({part}) * 0"


def quantile(q, histogram, by="", match=""):
    """Of a histogram, over the rate interval."""
    labels = ", ".join(filter(None, ["le", by]))
    return f"histogram_quantile({q}, sum by ({labels}) (rate({histogram}_bucket{{{match}}}[$__rate_interval])))".replace(
        "{}", ""
    )


def or_none(expression):
    """Of counts whose labels appear with the first event: zero until then."""
    return f"{expression} or vector(0)"


REQUESTED = rate("kelvin_store_requested_tokens_total")
HIT_RATIO = share(rate("kelvin_store_hit_tokens_total"), REQUESTED)
HIT_RATIO_BY_TIER = (
    f"{rate('kelvin_store_hit_tokens_total', by='tier')} / on () group_left () ({REQUESTED} > 0)"
    f" or {rate('kelvin_store_hit_tokens_total', by='tier')} * 0"
)
FILL_DRAM = f"{total('kelvin_store_used_bytes', by='tier')} / {total('kelvin_store_capacity_bytes', by='tier')}"
FILL_BELOW = f"{total('kelvin_tier_used_bytes', by='tier')} / ({total('kelvin_tier_capacity_bytes', by='tier')} > 0)"
