"""The place where ranks say how far they are."""

from pathlib import Path

from mmscale.data.prefetching.progress import RankProgress, make_progress, read_progress


def test_the_slowest_rank_counts(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    ranks = [RankProgress(path, number) for number in range(3)]
    ranks[0].tell(4)  # nobody listens yet
    make_progress(path, 3, 5)
    assert read_progress(path) == 4
    ranks[0].tell(9)
    ranks[2].tell(2**40)
    assert read_progress(path) == 4
    ranks[1].tell(6)
    assert read_progress(path) == 6
    for rank in ranks:
        rank.close()
        rank.close()
