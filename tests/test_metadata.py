"""What files say of themselves, read back from real TIFFs written by tifffile and by microscopes."""

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from acquisition.metadata import PageInfo, parse_time
from acquisition.ome import ome_infos
from acquisition.tiff import read_pages

IMAGES = np.arange(12 * 16 * 20, dtype=np.uint16).reshape(12, 16, 20)
MST = timezone(timedelta(hours=-7))
Local = datetime
"""A moment in the acquisition computer's own time."""


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2008:02:05 17:38:15", Local(2008, 2, 5, 17, 38, 15)),
        ("2008:02:05 17:38:15\0", Local(2008, 2, 5, 17, 38, 15)),
        (b"2008:02:05 17:38:15", Local(2008, 2, 5, 17, 38, 15)),
        ("2023-03-24T16:15:18.509Z", datetime(2023, 3, 24, 16, 15, 18, 509_000, UTC)),
        (
            "2023-03-23T14:50:32.6252176-04:00",
            datetime(2023, 3, 23, 14, 50, 32, 625_217, timezone(timedelta(hours=-4))),
        ),
        ("2022-12-28 17:04:24 -", Local(2022, 12, 28, 17, 4, 24)),
        ("2019-05-31 12:51:36.012 -0700", datetime(2019, 5, 31, 12, 51, 36, 12_000, MST)),
        ("2018-10-11 15:39:30 +0230", datetime(2018, 10, 11, 15, 39, 30, 0, timezone(timedelta(hours=2, minutes=30)))),
        ("2023/07/26 14:27:29", Local(2023, 7, 26, 14, 27, 29)),
        ("20240709 13:13:03.006", Local(2024, 7, 9, 13, 13, 3, 6_000)),
        ("20211010 03:48:12.38", Local(2021, 10, 10, 3, 48, 12, 38_000)),  # MetaMorph counts milliseconds
        ("2021-10-10T03:48:12.38", Local(2021, 10, 10, 3, 48, 12, 380_000)),
        ("1970:01:01 00:00:00", None),
        ("0000:00:00 00:00:00", None),
        ("2021-13-10T03:48:12", None),
        ("2021-10-10T03:48:12+99:99", None),
        ("2021-10:10 03:48:12", None),
        ("yesterday", None),
        ("", None),
        (None, None),
        (7, None),
    ],
)
def test_times_as_instruments_write_them(text: object, moment: datetime | None) -> None:
    assert parse_time(text) == moment
    if moment is not None:
        found = parse_time(text)
        assert found is not None
        assert found.utcoffset() == moment.utcoffset()


def test_ome_gives_time_place_and_axes_of_each_page(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        path,
        IMAGES.reshape(2, 3, 2, 16, 20),
        ome=True,
        metadata={
            "axes": "TZCYX",
            "AcquisitionDate": "2024-02-29T23:59:30+01:00",
            "PhysicalSizeX": 650.0,
            "PhysicalSizeXUnit": "nm",
            "Channel": {"Name": ["Phase", "GFP"]},
            "Plane": {
                "DeltaT": [1000.0 * k for k in range(12)],
                "DeltaTUnit": ["ms"] * 12,
                "PositionX": [float(k) for k in range(12)],
                "PositionXUnit": ["mm"] * 12,
                "PositionY": [10.0] * 12,
                "PositionYUnit": ["µm"] * 12,
            },
        },
    )
    infos = read_pages(path)
    assert [(info.timepoint, info.z, info.channel) for info in infos] == [
        (t, z, c) for t in range(2) for z in range(3) for c in ("Phase", "GFP")
    ]
    assert [info.page for info in infos] == list(range(12))
    assert infos[5].acquired_at == datetime(2024, 2, 29, 22, 59, 35, tzinfo=UTC)
    assert infos[5].stage_um == (5000.0, 10.0)
    assert infos[5].pixel_um == pytest.approx(0.65)
    assert {info.source for info in infos} == {"ome"}


def test_ome_of_a_single_image_names_no_axes(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, IMAGES[0], ome=True, datetime="2020:02:03 04:05:06", resolution=(10_000 / 0.9, 10_000 / 0.9))
    assert read_pages(path) == [PageInfo(0, acquired_at=Local(2020, 2, 3, 4, 5, 6), source="tiff")]


OME = """<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:me">
<Image ID="Image:0" Name="field 1"><AcquisitionDate>2024-01-01T00:00:00</AcquisitionDate>{label}
<Pixels DimensionOrder="{order}" SizeC="{c}" SizeT="{t}" SizeX="20" SizeY="16" SizeZ="{z}" TimeIncrement="1.5"
TimeIncrementUnit="min" Type="uint16">{body}</Pixels></Image>{more}</OME>"""


def ome(body: str, *, order: str = "XYZCT", c: int = 1, z: int = 1, t: int = 1, label: str = "", more: str = "") -> str:
    return OME.format(body=body, order=order, c=c, z=z, t=t, label=label, more=more)


def axes(text: str, count: int, name: str = "a.ome.tif") -> list[tuple[int | None, int | None, str | None]]:
    infos = ome_infos(text, range(count), name)
    assert infos is not None
    return [(info.timepoint, info.z, info.channel) for info in infos]


def test_ome_dimension_order_and_first_indices() -> None:
    text = ome('<TiffData FirstT="1" FirstC="0" FirstZ="1" IFD="2" PlaneCount="3"/>', order="XYZTC", c=2, z=2, t=3)
    nothing = (None, None, None)
    assert axes(text, 6) == [nothing, nothing, (1, 1, "0"), (2, 0, "0"), (2, 1, "0"), nothing]


def test_ome_planes_of_other_files_are_not_ours() -> None:
    body = "".join(
        f'<TiffData FirstT="{t}" IFD="{ifd}" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{name}</UUID></TiffData>'
        for t, ifd, name in [(0, 0, "b.ome.tif"), (1, 1, "b.ome.tif"), (2, 0, "a.ome.tif"), (3, 1, "a.ome.tif")]
    )
    assert axes(ome(body, t=4), 2) == [(2, None, None), (3, None, None)]
    assert axes(ome(body, t=4), 2, "b.ome.tif") == [(0, None, None), (1, None, None)]
    renamed = ome(body, t=4).replace(">urn:uuid:a.ome.tif<", ">urn:uuid:me<")
    assert axes(renamed, 2, "well B03.tif") == [(2, None, None), (3, None, None)]


def test_ome_rgb_channels_count_once() -> None:
    body = '<Channel ID="Channel:0:0" Name="RGB" SamplesPerPixel="3"/><TiffData/>'
    assert axes(ome(body, c=3, t=2), 2) == [(0, None, "RGB"), (1, None, "RGB")]


def test_ome_positions_and_time_increments() -> None:
    second = '<Image Name="field 2"><Pixels SizeT="1" DimensionOrder="XYCZT"><TiffData IFD="2"/></Pixels></Image>'
    text = ome("<TiffData/>", t=2, label='<StageLabel Name="B03-1"/>', more=second)
    infos = ome_infos(text, range(3), "a.tif")
    assert infos is not None
    assert [info.position for info in infos] == ["B03-1", "B03-1", "field 2"]
    assert [info.acquired_at for info in infos] == [Local(2024, 1, 1), Local(2024, 1, 1, 0, 1, 30), None]


@pytest.mark.parametrize(
    "text",
    [
        ome('<TiffData IFD="-999999999999" PlaneCount="999999999999"/>', c=10**9, z=10**9, t=10**9),
        ome('<TiffData FirstT="-7" PlaneCount="-3"/>', t=2),
        ome('<TiffData/><Plane TheC="0" TheZ="0" TheT="0" DeltaT="9e11" DeltaTUnit="d"/>'),
        ome('<TiffData/><Plane DeltaT="nan" PositionX="inf"/>'),
        ome('<Channel SamplesPerPixel="0"/><TiffData/>'),
        "<OME></OME>",
    ],
)
def test_ome_nonsense_is_borne(text: str) -> None:
    infos = ome_infos(text, range(2), "a.tif")
    assert infos is not None
    assert [info.page for info in infos] == [0, 1]


@pytest.mark.parametrize("text", ["<OME><Image></OME>", '<!DOCTYPE x [<!ENTITY a "b">]><OME/>', "<OME"])
def test_ome_that_cannot_be_read_says_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGES[0], description=text, metadata=None)
    assert read_pages(path) == [PageInfo(0)]


MICRO_MANAGER: dict[str, Any] = {
    "PixelSizeUm": 0.65,
    "ChannelIndex": 1,
    "Channel": "Phase",
    "FrameIndex": 7,
    "SliceIndex": 2,
    "PositionName": "B03-Site_4",
    "XPositionUm": -12.5,
    "YPositionUm": 400,
    "Time": "2019-05-31 12:51:36 -0700",
    "ReceivedTime": "2019-05-31 12:51:36.012 -0700",
}


def write_micro_manager(path: Path, records: list[dict[str, Any]], **options: Any) -> None:
    with tifffile.TiffWriter(path) as writer:
        for image, record in zip(IMAGES, records, strict=False):
            tag = (51123, 2, 0, json.dumps(record), True)
            writer.write(image, extratags=[tag], contiguous=False, metadata=None, **options)


def test_micro_manager_says_everything_of_each_page(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    later = {**MICRO_MANAGER, "FrameIndex": 8, "ReceivedTime": "2019-05-31 12:53:36.012 -0700"}
    write_micro_manager(path, [MICRO_MANAGER, later], resolution=(10_000, 10_000), resolutionunit=3)
    first, second = read_pages(path)
    assert first == PageInfo(
        0,
        timepoint=7,
        channel="Phase",
        z=2,
        position="B03-Site_4",
        acquired_at=datetime(2019, 5, 31, 12, 51, 36, 12_000, MST),
        pixel_um=0.65,
        stage_um=(-12.5, 400.0),
        source="micro-manager",
    )
    assert (second.page, second.timepoint) == (1, 8)
    assert second.acquired_at == datetime(2019, 5, 31, 19, 53, 36, 12_000, UTC)


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"PixelSizeUm": 0}, "pixel_um", None),
        ({"ReceivedTime": None}, "acquired_at", datetime(2019, 5, 31, 12, 51, 36, 0, MST)),
        ({"Time": "2019-05-31 12:51:36 -", "ReceivedTime": ""}, "acquired_at", Local(2019, 5, 31, 12, 51, 36)),
        ({"Channel": "Default"}, "channel", None),
        ({"ChannelName": "GFP"}, "channel", "GFP"),
        ({"PositionName": "Default"}, "position", None),
        ({"XPositionUm": "left"}, "stage_um", None),
        ({"Axes": {"channel": 0, "time": 3, "position": "C04"}}, "position", "C04"),
        ({"Axes": {"channel": 0, "time": 3}}, "timepoint", 3),
        ({"Axes": {"channel": 0}}, "channel", "Phase"),
        ({"Axes": {"channel": "DAPI"}}, "channel", "DAPI"),
    ],
)
def test_micro_manager_variants(tmp_path: Path, change: dict[str, Any], field: str, value: object) -> None:
    path = tmp_path / "a.tif"
    write_micro_manager(path, [{**MICRO_MANAGER, **change}], resolution=(10_000, 10_000), resolutionunit=3)
    assert getattr(read_pages(path)[0], field) == value


def test_micro_manager_speaks_before_ome_and_ome_fills_the_gaps(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    record = {key: value for key, value in MICRO_MANAGER.items() if key not in ("PixelSizeUm", "PositionName")}
    text = ome("<TiffData/>", label='<StageLabel Name="Pos7"/>').replace("<Pixels ", '<Pixels PhysicalSizeX="0.5" ')
    write_micro_manager(path, [record], description=text)
    (info,) = read_pages(path)
    assert (info.source, info.timepoint, info.position, info.pixel_um) == ("micro-manager", 7, "Pos7", 0.5)


def test_micro_manager_single_images_keep_their_record_in_imagejs_info(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGES[0], imagej=True, metadata={"Info": json.dumps(MICRO_MANAGER)})
    (info,) = read_pages(path)
    assert (info.channel, info.timepoint, info.pixel_um, info.source) == ("Phase", 7, 0.65, "micro-manager")


def test_imagej_hyperstack_counts_from_one(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        IMAGES.reshape(2, 3, 2, 16, 20),
        imagej=True,
        resolution=(1 / 0.65, 1 / 0.65),
        datetime="2020:02:03 04:05:06",
        metadata={"axes": "TZCYX", "unit": "um", "finterval": 90.0},
    )
    infos = read_pages(path)
    assert [(info.timepoint, info.z, info.channel) for info in infos] == [
        (t, z, str(c)) for t in (1, 2) for z in (1, 2, 3) for c in (1, 2)
    ]
    assert infos[0].pixel_um == pytest.approx(0.65, rel=1e-4)
    assert (infos[5].acquired_at, infos[6].acquired_at) == (
        Local(2020, 2, 3, 4, 5, 6),
        Local(2020, 2, 3, 4, 6, 36),
    )
    assert {info.source for info in infos} == {"imagej"}


@pytest.mark.parametrize(
    ("unit", "per_unit", "pixel_um"),
    [
        ("micron", 2.0, 0.5),
        ("\\u00B5m", 2.0, 0.5),
        ("um", 4.0, 0.25),
        ("nm", 0.002, 0.5),
        ("mm", 1000.0, 1.0),
        ("cm", 20_000.0, 0.5),
        ("inch", 72.0, None),
        ("inch", 25_400.0, 1.0),
        ("pixel", 1.0, None),
        ("", 3.0, None),
        ("furlong", 3.0, None),
    ],
)
def test_imagej_units(tmp_path: Path, unit: str, per_unit: float, pixel_um: float | None) -> None:
    path = tmp_path / "a.tif"
    text = "ImageJ=1.53t\n" + (f"unit={unit}\n" if unit else "") + "min=0.0\nmax=255.0\n"
    tifffile.imwrite(
        path, IMAGES[0], description=text, metadata=None, resolution=(per_unit, per_unit), resolutionunit=1
    )
    assert read_pages(path)[0].pixel_um == (None if pixel_um is None else pytest.approx(pixel_um, rel=1e-4))


@pytest.mark.parametrize(
    ("resolution", "unit", "pixel_um"),
    [
        ((15_384.6, 15_384.6), 3, 0.65),
        ((39_077, 39_077), 2, 0.65),
        ((72, 72), 2, None),
        ((300, 300), 2, None),
        ((1200, 1200), 2, None),
        ((28.35, 28.35), 3, None),
        ((1550.3, 1550.3), 3, None),  # 6.45 µm: a camera's pixel, not the sample's
        ((15_384.6, 7_692.3), 3, None),
        ((15_384.6, 15_384.6), 1, None),
        ((1, 1), 1, None),
    ],
)
def test_plain_resolution_only_where_it_can_be_a_microscopes(
    tmp_path: Path, resolution: tuple[float, float], unit: int, pixel_um: float | None
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGES[0], resolution=resolution, resolutionunit=unit, datetime="2020:02:03 04:05:06")
    (info,) = read_pages(path)
    assert info.pixel_um == (None if pixel_um is None else pytest.approx(pixel_um, rel=1e-3))
    assert (info.acquired_at, info.source) == (Local(2020, 2, 3, 4, 5, 6), "tiff")


METAMORPH = """<MetaData><prop id="ApplicationName" type="string" value="MetaMorph"/><PlaneInfo>
<prop id="spatial-calibration-state" type="bool" value="{state}"/>
<prop id="spatial-calibration-x" type="float" value="{size}"/>
<prop id="spatial-calibration-units" type="string" value="{unit}"/>
<prop id="acquisition-time-local" type="time" value="20240422 09:57:39.375"/>
<prop id="stage-position-x" type="float" value="68300"/><prop id="stage-position-y" type="float" value="31094.5"/>
<prop id="stage-label" type="string" value="C07 : Site 2"/><prop id="_IllumSetting_" type="string" value="FITC"/>
</PlaneInfo></MetaData>"""


@pytest.mark.parametrize(
    ("state", "size", "unit", "pixel_um"),
    [("on", "0.65", "um", 0.65), ("on", "650", "nm", 0.65), ("off", "1", "um", None), ("on", "1", "", None)],
)
def test_metamorph_xml(tmp_path: Path, state: str, size: str, unit: str, pixel_um: float | None) -> None:
    path = tmp_path / "a.tif"
    text = METAMORPH.format(state=state, size=size, unit=unit)
    tifffile.imwrite(path, IMAGES[0], description=text, metadata=None, software="MetaSeries")
    assert read_pages(path) == [
        PageInfo(
            0,
            channel="FITC",
            position="C07 : Site 2",
            acquired_at=Local(2024, 4, 22, 9, 57, 39, 375_000),
            pixel_um=pixel_um,
            stage_um=(68_300.0, 31_094.5),
            source="metamorph",
        )
    ]


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("path", "info"),
    [
        (
            "vendor/imagexpress_exported/9987_Plate_3434/TimePoint_1/ZStep_1/9987_B02_s1_w1.TIF",
            PageInfo(
                0,
                channel="DAPI",
                z=1,
                position="B02 : Site 1",
                acquired_at=Local(2024, 7, 9, 13, 13, 3, 6_000),
                pixel_um=1.3672,
                stage_um=(22_985.0, 19_885.0),
                source="metamorph",
            ),
        ),
        (
            "vendor/imagexpress_db/1well-3C-2S-Zmix-T/2024-04-22/1697/TimePoint_1/"
            "1well-3C-2S-Zmix-T_C07_s2_w1EADF08BD-3BFB-44F3-8214-24B191F3D15C.tif",
            PageInfo(
                0,
                timepoint=1,
                channel="FITC",
                z=1,
                position="C07 : Site 2",
                acquired_at=Local(2024, 4, 22, 9, 57, 39, 375_000),
                pixel_um=13.5504,
                stage_um=(68_300.0, 31_094.5),
                source="metamorph",
            ),
        ),
        (
            "phase_unlabelled/woundcompute_fibroblast/run 1_s11_t020.TIF",
            PageInfo(
                0,
                channel="Brightfield",
                position="P18 pos 11",
                acquired_at=Local(2021, 10, 10, 3, 48, 12, 38_000),
                stage_um=(-100_113.0, 27_449.8),
                source="metamorph",
            ),
        ),
        (
            "vendor/phenix_v5/images/r01c01f01p01-ch1sk1fk1fl1.tiff",
            PageInfo(0, acquired_at=datetime(2023, 3, 24, 16, 15, 18, 509_000, UTC), source="tiff"),
        ),
        (
            "vendor/cellprofiler_vitra/Channel 1-01-A-01-00.tif",
            PageInfo(0, acquired_at=Local(2008, 2, 5, 17, 38, 15), source="tiff"),
        ),
        ("phase_instances/usiigaci_t98g/set5/raw.tif", PageInfo(0)),
    ],
)
def test_real_files(shared: Path, path: str, info: PageInfo) -> None:
    assert read_pages(shared / "data" / path) == [info]


@pytest.mark.realdata
def test_real_cv8000_files_say_nothing(shared: Path) -> None:
    paths = sorted((shared / "data/vendor/yokogawa_cv8000").rglob("*_D08_*.tif"))
    assert len(paths) == 32
    assert all(read_pages(path) == [PageInfo(0)] for path in paths)
