"""What is said about data that the model does not learn as it stands in the file."""

from trainer.data.store_stats import StoreStats


def data_notice(
    stats: StoreStats, *, is_causal: bool, max_source: int, max_target: int
) -> str | None:
    """A line about cut, empty and rewritten rows; None without any."""
    said = []
    if stats.cut_sources and is_causal:
        said.append(
            f"cut the beginning of {stats.cut_sources:,} of {stats.rows:,} conversations, to "
            f"{max_source + max_target} tokens, and the end of {stats.cut_targets:,} answers"
        )
    elif stats.cut_sources or stats.cut_targets:
        said.append(
            f"truncated {stats.cut_sources:,} of {stats.rows:,} sources to {max_source} tokens "
            f"and {stats.cut_targets:,} targets to {max_target}"
        )
    if stats.empty_responses:
        said.append(
            f"{stats.empty_responses:,} of {stats.rows:,} responses are empty: only their end "
            f"counts in the loss"
        )
    if stats.last_only:
        said.append(
            f"of {stats.last_only:,} conversations only the last answer counts in the loss: the "
            f"chat template rewrites the turns before it"
        )
    if stats.altered:
        said.append(
            f"the chat template leaves out a part of {stats.altered:,} of {stats.rows:,} rows, such as "
            f"thinking or a system message: the model does not get it"
        )
    if stats.spelled:
        said.append(
            f"the text of {stats.spelled:,} of {stats.rows:,} rows spells a special token (first "
            f"{stats.spelling!r}), which becomes that token"
        )
    return "; ".join(said) or None
