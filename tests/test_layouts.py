"""Vendors' names: every name of the list, the real folders against their own metadata, and what must be refused."""

import csv
import re
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path, PurePath, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acquisition.layouts import LAYOUTS, Named, image_name, open_layout, recognise
from acquisition.layouts.named import PART_STEP
from sesmo_live.errors import ConfigError, ImageError, UsageError
from sesmo_live.records import Site
from sesmo_live.wells import well_name

ROOT = Path("/watched")
EXPECTED = Path(__file__).parent / "layouts" / "expected.csv"
DOCS = Path(__file__).parents[1] / "docs" / "layouts.md"
NOUNS = ("well", "field", "timepoint", "channel", "z", "plate", "run", "position")


def expected_rows() -> list[dict[str, str]]:
    with EXPECTED.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def read(name: str, layout: str = "auto", *, pattern: str | None = None, wells: dict[str, str] | None = None) -> Named:
    named = open_layout(layout, pattern=pattern, wells=wells)(ROOT, ROOT / name)
    assert named is not None, f"{layout} does not know {name}"
    return named


def nouns(named: Named) -> dict[str, str]:
    return {noun: str(getattr(named, noun) if getattr(named, noun) is not None else "") for noun in NOUNS}


def place(named: Named) -> tuple[str | None, int, int, str, int]:
    return named.well, named.field, named.timepoint, named.channel, named.z


# -- the list of vendors' names ----------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_expected_table_holds_every_name_of_the_vendors_list(shared: Path) -> None:
    with (shared / "data" / "vendor" / "filenames.csv").open(encoding="utf-8", newline="") as stream:
        listed = Counter((row["vendor"], row["filename"]) for row in csv.DictReader(stream))
    assert Counter((row["vendor"], row["filename"]) for row in expected_rows()) == listed


@pytest.mark.parametrize("layout", ["auto", "preset"])
def test_every_listed_name_is_read_as_expected(layout: str) -> None:
    wrong = []
    for row in expected_rows():
        named = read(row["filename"], row["layout"] if layout == "preset" else layout)
        skipped = row["reason"] if row["status"] in ("skipped", "unsupported") else ""
        if nouns(named) != {noun: row[noun] for noun in NOUNS} or named.skip != skipped:
            wrong.append((row["filename"], named))
    assert wrong == []


def test_every_row_that_is_not_an_image_gives_its_reason() -> None:
    assert [row["filename"] for row in expected_rows() if (row["status"] == "image") == bool(row["reason"])] == []


def test_each_listed_name_is_known_to_its_own_vendor_alone() -> None:
    readers = {layout: open_layout(layout) for layout in LAYOUTS if layout != "imagexpress"}
    for row in expected_rows():
        path = ROOT / row["filename"]
        assert [layout for layout, reader in readers.items() if reader(ROOT, path)] == [row["layout"]]


def test_listed_positions_become_wells_by_the_wells_map() -> None:
    rows = [row for row in expected_rows() if row["status"] == "position"]
    wells = {row["position"]: "b3" for row in rows}
    assert len(rows) == 21
    assert {read(row["filename"], wells=wells).well for row in rows} == {"B03"}


def test_no_two_listed_images_of_one_folder_claim_one_place() -> None:
    rows = [row for row in expected_rows() if row["status"] == "image" and row["layout"] != "metamorph"]
    listed = {row["filename"]: row for row in rows if not row["filename"].startswith("B2/")}
    sites = Counter((row["vendor"], *(row[noun] for noun in NOUNS)) for row in listed.values())
    assert max(sites.values()) == 1
    regions = {row["field"] for row in rows if "ROI" in row["filename"]}
    assert regions == {"1001", "1002", "2001", "2002", "3001"}


@pytest.mark.parametrize("vendor", sorted({row["vendor"] for row in expected_rows()}))
def test_recognise_names_the_vendor_of_its_names(vendor: str) -> None:
    rows = [row for row in expected_rows() if row["vendor"] == vendor]
    assert recognise(PurePosixPath(row["filename"]) for row in rows) == rows[0]["layout"]


def test_recognise_follows_the_majority_and_knows_when_to_be_silent() -> None:
    names = [PurePath("a_B03_1_00d00h00m.tif"), PurePath("a_B04_1_00d00h00m.tif"), PurePath("r01c01f01p01-ch1t01.tiff")]
    assert recognise(names) == "incucyte"
    assert recognise([PurePath("holiday.tif"), PurePath("a_ZZ99_1_00d00h00m.tif")]) is None
    assert recognise([]) is None


# -- forms beyond the list ---------------------------------------------------------------------------------------------

FORMS = [
    ("acq_2/B03-Site_4/img_channel001_position012_time000000007_z002.tif", ("B03", 4, 7, "1", 2), "acq", "2"),
    ("acq_1/H12/img_channel000_position000_time000000000_z000.tif", ("H12", 1, 0, "0", 0), "acq", "1"),
    ("acq_1/C4_2/img_000000003_DAPI_low_001.tif", ("C04", 2, 3, "DAPI_low", 1), "acq", "1"),
    ("acq_1/img_000000003__001.tif", (None, 1, 3, "", 1), "acq", "1"),
    ("day one_1/day one_1_MMStack_AF48-Site_3.ome.tif", ("AF48", 3, 1, "", 0), "day one", "1"),
    ("scan_3_MMStack_A1-Site_15_1.ome.tif", ("A01", 15, 1, "", 0), "scan", "3"),
    ("P_Plate_77/TimePoint_3/ZStep_2/P_B02_s4_w10.TIF", ("B02", 4, 3, "10", 2), "P", "77"),
    ("P_Plate_77/TimePoint_1/A01.TIF", ("A01", 1, 1, "", 0), "P", "77"),
    ("A01_s1_w2_z5.tif", ("A01", 1, 1, "2", 5), "", ""),
    ("x/experiment/timepoint1/prot_t1_C05_s0_w0_z1.tif", ("C05", 0, 1, "0", 1), "prot", ""),
    ("x/experiment/timepoint0/p_projection_t0_C05_s3_w1_z0.tif", ("C05", 3, 0, "1", 0), "p", ""),
    ("run_w2Phase_s12_B04_t3.TIF", ("B04", 12, 3, "2", 0), "run", ""),
    ("B1__2024-02-17T22_04_34-Measurement 19/Images/r06c17f10p02-ch3sk5fk1fl1.tiff", ("F17", 10, 5, "3", 2), "B1", "2"),
    ("B1/Images/r32c48f01p01-ch01t07.tiff", ("AF48", 1, 7, "1", 1), "B1", ""),
    ("S_20220715_151525/S/S_D05_T0002F001L01A01Z03C04.tif", ("D05", 1, 2, "4", 3), "S", "20220715_151525"),
    ("20251201T134840_Wells/Image/W0029F0002T0003Z004C1.tif", (None, 2, 3, "1", 4), "Wells", "20251201T134840"),
    ("AF-48_F0002_T0003_Z0004_C2.tif", ("AF48", 2, 3, "2", 4), "", ""),
    ("EssenFiles/ScanData/2505/16/1124/1248/A1-2-Ph.tif", ("A01", 2, 202505161124, "Ph", 0), "1248", ""),
    ("plate9/green/B10_1_01d03h05m.tif", ("B10", 1, 1625, "green", 0), "plate9", ""),
    ("A172_Phase_C7_1_03d04h00m_4.tif", ("C07", 3 * PART_STEP + 1, 4560, "Phase", 0), "A172", ""),
    ("241128_111010_Plate 1/B2_03_2_4Z7_GFP_012.tif", ("B02", 4, 12, "GFP", 7), "Plate 1", "241128_111010"),
    ("Exp/H4/H4_2Z1_Bright Field_3_004_02.tif", ("H04", 2, 4, "Bright Field", 1), "Exp", ""),
    ("scan/data/B2--W00014--P00003--Z00002--T00005--405 nm #1.tif", ("B02", 3, 5, "405 nm #1", 2), "scan", ""),
    ("x/Channel 2-12-A-12-03.tif", ("A12", 3, 1, "2", 0), "x", ""),
    ("DEMO__second/B03_f2_t3_cPhase Contrast_z4_20261005T143000Z.tif", ("B03", 2, 3, "Phase Contrast", 4), "DEMO", "s"),
]


@pytest.mark.parametrize(("name", "expected", "plate", "run"), FORMS)
def test_forms_beyond_the_list(
    name: str, expected: tuple[str | None, int, int, str, int], plate: str, run: str
) -> None:
    named = read(name)
    assert (place(named), named.plate, named.skip) == (expected, plate, "")
    assert named.run.startswith(run) if run else named.run == ""


@pytest.mark.parametrize(
    ("name", "wells", "well", "field"),
    [
        ("acq_1/Pos7/img_channel000_position007_time000000000_z000.tif", {"Pos7": "D4"}, "D04", 7),
        ("acq_1/acq_1_MMStack_Pos7_2.ome.tif", {"Pos7": "D4"}, "D04", 7),
        ("acq_1/acq_1_MMStack_treated_1.ome.tif", {"treated_1": "D4"}, "D04", 1),
        ("acq_1/2-Pos001_003/img_channel000_position009_time000000000_z000.tif", {"2": "E5"}, "E05", 1003),
        ("s_1_MMStack_2-Pos_001_003.ome.tif", {"2-Pos_001_003": "E5", "2": "A1"}, "E05", 1003),
        ("XY12/Image_00004_CH4.tif", {"XY12": "F6"}, "F06", 4),
        ("run 4_s3_t001.TIF", {"s3": "AA1"}, "AA01", 3),
        ("x--W00014--P00003--Z00002--T00005--BF.tif", {"W00014": "B2"}, "B02", 3),
    ],
)
def test_positions_are_looked_up_in_the_wells_map(name: str, wells: dict[str, str], well: str, field: int) -> None:
    named = read(name, wells=wells)
    assert (named.well, named.field) == (well, field)
    assert read(name).well is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("DC_sCMOS #1_CAM1.tif", "dark-current correction"),
        ("A1_-3_1_1_Stitched[Read 1_GFP 469,525]_001.tif", "stitched image"),
        ("p/Thumbs/p_A01_s1_w1.TIF", "thumbnail"),
        ("A1_01_1_1_Phase Contrast_001_thumb.tif", "thumbnail"),
        ("1_XY01_00001_Overlay.tif", "overlay"),
        ("experiment_montage/timepoint0/p_t0_C05_s0_w0_z0.tif", "stitched image"),
        ("r01c01f01p01-ch1sk1fk2fl1.tiff", "later frame"),
        ("VID1_A1_1_00d00h00m.jpg", "jpg file, not TIFF"),
    ],
)
def test_images_that_are_none_of_a_plate_say_why(name: str, reason: str) -> None:
    assert reason in read(name).skip


@pytest.mark.parametrize(
    "name",
    ["holiday.tif", "9987_B02_s1_w1.HTD", "._A1_01_1_1_GFP_001.tif", "A01.tif", "P_A100_s1_w1.TIF", "1_XY01.bcf"],
)
def test_unknown_names_are_none(name: str) -> None:
    assert open_layout("auto")(ROOT, ROOT / name) is None


@pytest.mark.parametrize(
    "name",
    [
        "r33c01f01p01-ch1sk1fk1fl1.tiff",
        "r01c49f01p01-ch1sk1fk1fl1.tiff",
        "P_B99_s1_w1.TIF",
        "p/AG01_f1_t1_c_z0.tif",
        "VID1_A0_1_00d00h00m.tif",
        "VID1_A1_1_2026y13m01d_00h00m.tif",
        "A1_01_1_99999999999999999999_GFP_001.tif",
    ],
)
def test_impossible_wells_dates_and_numbers_are_named_not_parsed(name: str) -> None:
    with pytest.raises(ImageError, match=PurePosixPath(name).name.split(".")[0]):
        open_layout("auto")(ROOT, ROOT / name)


def test_a_path_outside_the_watched_folder_is_refused() -> None:
    with pytest.raises(ImageError, match="does not lie in"):
        open_layout("auto")(ROOT, Path("/elsewhere/A01_s1_w1.tif"))


def test_incucyte_dates_are_naive_local_time() -> None:
    assert read("VID123_C04_2_2026y10m05d_14h30m.tif").acquired_at == datetime(2026, 10, 5, 14, 30)  # noqa: DTZ001
    assert read("VID123_C04_2_00d14h30m.tif").acquired_at is None


# -- the user's own pattern --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        (r"(?P<plate>\w+)/(?P<well>\w+)-(?P<field>\d+)", "P7/b3-12.tif", ("B03", 12, 1, "", 0)),
        (r"(?P<row>[A-P]) - (?P<column>\d+)\(fld (?P<field>\d+)", "A - 07(fld 2 wv Blue).tif", ("A07", 2, 1, "", 0)),
        (r"R(?P<row>\d+)C(?P<column>\d+)_t(?P<timepoint>\d+)(_z(?P<z>\d+))?", "R27C3_t4.tif", ("AA03", 1, 4, "", 0)),
        (r"(?P<position>XY\d+)_(?P<channel>\w+)\.tif", "XY9_Phase.tif", ("C04", 1, 1, "Phase", 0)),
    ],
)
def test_named_groups(pattern: str, name: str, expected: tuple[str, int, int, str, int]) -> None:
    assert place(read(name, "regex", pattern=pattern, wells={"XY9": "C4"})) == expected


def test_a_pattern_that_finds_no_match_or_no_number() -> None:
    layout = open_layout("regex", pattern=r"(?P<well>[A-H]\d)_(?P<field>\w+)")
    assert layout(ROOT, ROOT / "nothing.tif") is None
    with pytest.raises(ImageError, match="'top' as field"):
        layout(ROOT, ROOT / "A1_top.tif")


@pytest.mark.parametrize(
    ("layout", "pattern", "message"),
    [
        ("incucite", None, "did you mean 'incucyte'"),
        ("phonix", None, "did you mean 'phenix'"),
        ("zzzz", None, "choose one of phenix"),
        ("phenix", "(?P<well>A1)", "takes no pattern"),
        ("regex", "(?P<well>A1", "no regular expression"),
        ("regex", "(?P<wel>A1)", "did you mean 'well'"),
        ("regex", "(?P<row>A)(?P<field>1)", "finds no well"),
        ("regex", None, "finds no well"),
    ],
)
def test_wrong_layouts_name_the_remedy(layout: str, pattern: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        open_layout(layout, pattern=pattern)


def test_a_wells_map_must_name_wells() -> None:
    with pytest.raises(ConfigError, match="'Q99' is not a well"):
        open_layout("keyence", wells={"XY01": "Q99"})


@pytest.mark.parametrize("alias", ["Opera Phenix", "operetta", "OPERA_PHENIX"])
def test_other_spellings_of_a_layout(alias: str) -> None:
    assert read("r02c03f01p01-ch1t01.tiff", alias).well == "B03"


# -- writing names -----------------------------------------------------------------------------------------------------

RUNS = {
    "sesmo": "second",
    "micro-manager": "3",
    "imagexpress": "3434",
    "imagexpress-db": "2024-04-22/1697",
    "phenix": "2024-02-17T22_04_34-Measurement 1",
    "yokogawa": "20230918_135839",
    "cytation": "241128_111010",
}
CHANNELS = {"incucyte": ["", "Phase", "green"], "cytation": ["Phase Contrast", "GFP 469,525"], "scanr": ["405 nm #1"]}
TEXT_CHANNELS = ["Phase", "Bright Field", "0"]
WRITTEN = [layout for layout in LAYOUTS if layout not in ("keyence", "nikon")]


@st.composite
def sites(draw: st.DrawFn, layout: str) -> Site:
    still, flat = layout == "vitra", layout in ("vitra", "incucyte", "metamorph")
    channels = CHANNELS.get(layout, TEXT_CHANNELS if layout in ("sesmo", "micro-manager") else ["1", "4"])
    return Site(
        plate=draw(st.from_regex(r"plate[a-z0-9-]{0,6}", fullmatch=True).filter(lambda text: text[-1] != "-")),
        well=well_name(draw(st.integers(1, 32)), draw(st.integers(1, 48))),
        field=draw(st.integers(0, 200)),
        timepoint=1 if still else draw(st.integers(0, 3000)),
        channel=draw(st.sampled_from(channels)),
        z=0 if flat else draw(st.integers(0, 60)),
        run=draw(st.sampled_from(["", RUNS[layout]])) if layout in RUNS else "",
    )


def read_back(layout: str, path: PurePosixPath) -> Site:
    named = read(str(path), layout)
    well, field, timepoint, channel, z = place(named)
    return Site(named.plate, well or "", field, timepoint, channel, z, named.run)


@pytest.mark.parametrize("layout", WRITTEN)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_a_written_name_is_read_back_as_the_same_site(layout: str, data: st.DataObject) -> None:
    site = data.draw(sites(layout))
    path = image_name(layout, site)
    assert read_back(layout, path) == site
    assert read_back("auto", path) == site
    assert recognise([path]) == layout


@settings(deadline=None, max_examples=200)
@given(
    layout=st.sampled_from(LAYOUTS),
    site=st.builds(
        Site,
        *(st.text(max_size=8) | st.sampled_from(["..", "a/../b", "/etc", "P1"]), st.sampled_from(["B03", "AF48", "x"])),
        *(st.integers(-5, 10**13), st.integers(-5, 10**13), st.text(max_size=8) | st.sampled_from(["1", "Phase"])),
        *(st.integers(-5, 10**6), st.text(max_size=8) | st.just("")),
    ),
)
def test_what_a_layout_cannot_carry_is_refused_never_changed(layout: str, site: Site) -> None:
    try:
        path = image_name(layout, site)
    except UsageError:
        return
    assert not path.is_absolute()
    assert ".." not in path.parts
    assert read_back(layout, path) == site


def test_refusals_to_write_name_what_is_lost() -> None:
    site = Site("P", "B03", 1, 2, "Phase", 0)
    with pytest.raises(UsageError, match="'phenix' cannot carry channel 'Phase'|'phenix' cannot carry plate"):
        image_name("phenix", site)
    with pytest.raises(UsageError, match="carry no well"):
        image_name("keyence", site)
    with pytest.raises(UsageError, match="cannot stand in a file name"):
        image_name("sesmo", Site("a:b", "B03", 1, 1))


@pytest.mark.parametrize("zone", [None, UTC, timezone(timedelta(hours=-4))])
def test_sesmo_names_carry_the_time(zone: timezone | None) -> None:
    moment = datetime(2026, 10, 5, 14, 30, 7, tzinfo=zone)
    path = image_name("sesmo", Site("P", "B03", 1, 1, "Phase"), moment)
    assert read(str(path)).acquired_at == moment


def test_the_page_on_layouts_names_each_of_them() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert [layout for layout in (*LAYOUTS, "auto", "regex") if f"`{layout}`" not in text] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("A - 07(fld 2 wv Blue - FITC).tif", ("A07", 2, 1, "Blue - FITC", 0)),
        ("B5_03_1_4_Phase Contrast_012.tif", ("B05", 4, 12, "", 0)),
    ],
)
def test_the_patterns_on_the_page_do_what_it_says(name: str, expected: tuple[str, int, int, str, int]) -> None:
    patterns = re.findall(r"['`](\(\?P<.*)['`]", DOCS.read_text(encoding="utf-8"))
    layouts = [open_layout("regex", pattern=pattern) for pattern in patterns]
    assert len(layouts) == 2
    found = [named for layout in layouts if (named := layout(ROOT, ROOT / name))]
    assert [place(named) for named in found] == [expected]
