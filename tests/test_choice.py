"""Which channel and plane are scored."""

import pytest

from sesmo_live.ingest.choice import choose_channel, choose_plane


@pytest.mark.parametrize(
    ("labels", "wanted", "channel", "said"),
    [
        ({"3": "3"}, "", "3", "only one"),
        ({"": ""}, "", "", "without a name, the only one"),
        ({"1": "DAPI", "2": "Phase Contrast"}, "", "2", "named like phase"),
        ({"1": "Bright_Field", "2": "FITC"}, "", "1", "named like brightfield"),
        ({"1": "Brightfield", "2": "phase"}, "", "2", "named like phase"),
        ({"red": "red", "phase": "phase"}, "", "phase", "named like phase"),
        ({"10": "FITC", "2": "DAPI"}, "", "2", "the first (others: 10 (FITC)); set channel"),
        ({"1": "DAPI", "2": "Phase"}, "1", "1", "as configured"),
        ({"1": "DAPI", "2": "Phase"}, "dapi", "1", "as configured"),
        ({"1": "DAPI"}, "phase", None, "not seen yet"),
    ],
)
def test_channel(labels: dict[str, str], wanted: str, channel: str | None, said: str) -> None:
    chosen, why = choose_channel(labels, wanted)
    assert chosen == channel
    assert said in why


@pytest.mark.parametrize(
    ("planes", "wanted", "plane"), [({0}, None, 0), ({3, 1, 2}, None, 1), ({1, 2}, 2, 2), ({1, 2}, 5, None)]
)
def test_plane(planes: set[int], wanted: int | None, plane: int | None) -> None:
    assert choose_plane(planes, wanted)[0] == plane
