"""Which rows form a set of questions.

Membership depends only on hashes (content-defined chunking, as in LBFS, SOSP 2001): within a
category and split, in hash order, a set ends after a question whose hash is divisible by the mean
size, or at twice the mean size. A new row changes the set it falls into, and sometimes the next
few: at a mean size of 3, at most two sets in four of five cases.
"""

from collections.abc import Iterable, Iterator

Member = tuple[str, str, bool]  # row_id, shelf (category and split), whether its hash ends a set


def form_sets(rows: Iterable[Member], mean_size: int) -> Iterator[list[str]]:
    """Cut rows, sorted by shelf and hash, into sets of at least two; yield their row_ids.

    A single row on a shelf is in no set.
    """
    shelf, current, last = "", list[str](), list[str]()
    for row_id, its_shelf, ends in rows:
        if its_shelf != shelf:
            yield from _close_shelf(last, current)
            shelf, current, last = its_shelf, [], []
        current.append(row_id)
        if len(current) >= 2 and (ends or len(current) == 2 * mean_size):
            if last:
                yield last
            last, current = current, []
    yield from _close_shelf(last, current)


def _close_shelf(last: list[str], rest: list[str]) -> Iterator[list[str]]:
    if last and len(rest) == 1:
        yield last + rest
        return
    yield from (members for members in (last, rest) if len(members) >= 2)
