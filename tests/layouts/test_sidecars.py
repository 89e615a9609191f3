"""Real vendors' folders against their own metadata; sidecars that come late, break off, or are not to be trusted."""

import csv
import itertools
import logging
import re
import shutil
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from acquisition.layouts import Named, open_layout, sidecars
from sesmo_live.wells import well_name

BTS = "{http://www.yokogawa.co.jp/BTS/BTSSchema/1.0}"

HARMONY_7 = """<?xml version="1.0" encoding="utf-8"?>
<EvaluationInputData Version="2" xmlns="43B2A954-E3C3-47E1-B392-6635266B0DD3/HarmonyV7">
  <Plates><Plate><PlateID>240624_1.1</PlateID><Name>240624_1.1</Name>
    <MeasurementStartTime>2024-06-24T11:48:44.5462111-04:00</MeasurementStartTime></Plate></Plates>
  <Wells><Well><id>0203</id><Row>2</Row><Col>3</Col><Image id="0203K1F1P1R7" /></Well></Wells>
  <Maps><Map><Entry ChannelID="7"><FlatfieldProfile>{Channel: 7}</FlatfieldProfile></Entry></Map>
    <Map><Entry ChannelID="7"><ChannelName>Brightfield</ChannelName>
      <ImageResolutionX Unit="m">2.96688132474701E-07</ImageResolutionX></Entry></Map></Maps>
  <Images><Image Version="1"><id>0203K1F1P1R7</id><State>Ok</State><URL>r02c03f01p01-ch7sk1fk1fl1.tiff</URL>
    <Row>2</Row><Col>3</Col><FieldID>1</FieldID><PlaneID>1</PlaneID><TimepointID>1</TimepointID>
    <ChannelID>7</ChannelID><PositionX Unit="m">-0.000322907</PositionX><PositionY Unit="m">0</PositionY>
    <AbsTime>2024-06-24T11:48:56.7630001-04:00</AbsTime></Image></Images>
</EvaluationInputData>
"""
IMAGE_7 = "r02c03f01p01-ch7sk1fk1fl1.tiff"

CQ_RECORD = (
    '<bts:MeasurementRecord bts:Type="IMG" bts:Time="2025-12-01T13:48:48.686+01:00" bts:Column="5" bts:Row="3" '
    'bts:TimePoint="1" bts:FieldIndex="1" bts:ZIndex="1" bts:X="-1460.8" bts:Y="-1303.2" bts:Ch="1">'
    "Image/W0029F0001T0001Z000C1.tif</bts:MeasurementRecord>\n"
)
CQ_HEAD = f'<?xml version="1.0" encoding="utf-8"?>\n<bts:MeasurementData xmlns:bts="{BTS[1:-1]}">\n'
IMAGE_CV = "1053601756_A01_T0001F001L01A06Z01C01"
CQ_DETAIL = f"""<?xml version="1.0" encoding="utf-8"?>
<bts:MeasurementDetail bts:MeasurementSettingFileName="../../secret.mes" xmlns:bts="{BTS[1:-1]}">
  <bts:MeasurementSamplePlate bts:Name="Plate 12" bts:WellPlateFileName="Plate 12.wpi" />
  <bts:MeasurementChannel bts:Ch="1" bts:HorizontalPixelDimension="0.32283699215257772" />
</bts:MeasurementDetail>
"""
CQ_SETTINGS = f"""<bts:MeasurementSetting xmlns:bts="{BTS[1:-1]}"><bts:ChannelList>
  <bts:Channel bts:Ch="1" bts:Target="BF" bts:Kind="Brightfield" /></bts:ChannelList></bts:MeasurementSetting>
"""


def read(root: Path, path: Path, layout: str = "auto", wells: dict[str, str] | None = None) -> Named:
    named = open_layout(layout, wells=wells)(root, path)
    assert named is not None
    return named


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# -- the real folders --------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_phenix_agrees_with_the_reference_table(shared: Path) -> None:
    root = shared / "data" / "vendor" / "phenix_v5"
    with (root / "load_data_version5.csv").open(encoding="utf-8", newline="") as stream:
        row = next(csv.DictReader(stream))
    images = [key.removeprefix("FileName_") for key in row if key.startswith("FileName_")]
    assert len(images) == 6
    for image in images:
        named = read(root, root / "images" / row[f"FileName_{image}"])
        assert named.well == row["Metadata_Well"] == well_name(int(row["Metadata_Row"]), int(row["Metadata_Col"]))
        assert (named.field, named.z) == (int(row["Metadata_FieldID"]), int(row["Metadata_PlaneID"]))
        assert named.channel == row[f"Metadata_ChannelID_{image}"]
        assert named.channel_name == row[f"Metadata_ChannelName_{image}"]
        assert named.plate == row["Metadata_Plate"]
        assert named.acquired_at == datetime.fromisoformat(row[f"Metadata_AbsTime_{image}"])
        assert named.pixel_um == pytest.approx(float(row["Metadata_ImageResolutionX"]) * 1e6)
        metres = (float(row["Metadata_PositionX"]), float(row["Metadata_PositionY"]))
        assert named.stage_um == pytest.approx([x * 1e6 for x in metres])


@pytest.mark.realdata
def test_cv8000_agrees_with_every_record_of_its_mlf(shared: Path) -> None:
    root = shared / "data" / "vendor" / "yokogawa_cv8000"
    mlf = next(root.rglob("MeasurementData.mlf"))
    records = ET.parse(mlf).getroot().findall(f"{BTS}MeasurementRecord")  # noqa: S314 - our own file
    assert len(records) == 96
    for record in records:
        value = {key.removeprefix(BTS): text for key, text in record.attrib.items()}
        named = read(root, mlf.parent / (record.text or ""))
        assert named.well == well_name(int(value["Row"]), int(value["Column"]))
        assert (named.field, named.timepoint) == (int(value["FieldIndex"]), int(value["TimePoint"]))
        assert (named.channel, named.z) == (value["Ch"], int(value["ZIndex"]))
        assert named.acquired_at == datetime.fromisoformat(value["Time"])
        assert named.stage_um == (float(value["X"]), float(value["Y"]))
        assert (named.pixel_um, named.channel_name) == (0.325, {"1": "405", "2": "488"}[value["Ch"]])
        assert (named.plate, named.run) == ("CV8000-Minimal-DataSet-2C-3W-4S-FP2-stack", "20230918_135839")


@pytest.mark.realdata
def test_cv8000_folder_holds_six_corrections_besides(shared: Path) -> None:
    root = shared / "data" / "vendor" / "yokogawa_cv8000"
    reasons = [named.skip for named in (read(root, path) for path in root.rglob("*.tif")) if named.skip]
    assert len(reasons) == 6
    assert all("correction, not an image of a plate" in reason for reason in reasons)


@pytest.mark.realdata
def test_imagexpress_export_is_told_by_its_folders_and_htd(shared: Path) -> None:
    root = shared / "data" / "vendor" / "imagexpress_exported"
    found = set()
    for path in root.rglob("*.TIF"):
        named = read(root, path)
        well, site, wave = re.findall(r"_(B0\d)_s(\d)_w(\d)", path.name)[0]
        assert (named.plate, named.run, named.timepoint) == ("9987", "3434", 1)
        assert (named.well, named.field, named.channel) == (well, int(site), wave)
        assert named.z == int(path.parent.name.removeprefix("ZStep_"))
        assert named.channel_name == {"1": "DAPI", "2": "FITC", "3": "Texas Red"}[wave]
        found.add((well, site, wave, named.z))
    assert found == set(itertools.product(("B02", "B03"), "12", "123", (0, 1)))


@pytest.mark.realdata
def test_imagexpress_database_and_vitra_folders(shared: Path) -> None:
    root = shared / "data" / "vendor"
    database = [read(root, path) for path in (root / "imagexpress_db").rglob("*.tif")]
    sites = {(named.well, named.field, named.timepoint, named.channel, named.run) for named in database}
    assert sites == set(itertools.product(["C07"], (1, 2), (1, 2), "123", ["2024-04-22/1697"]))
    vitra = [read(root, path) for path in sorted((root / "cellprofiler_vitra").iterdir())]
    assert [(named.well, named.channel, named.field) for named in vitra] == [("A01", "1", 0), ("A12", "1", 0)]


# -- sidecars that come late or break off ------------------------------------------------------------------------------


def test_harmony_7_keeps_channels_apart_from_images(tmp_path: Path) -> None:
    put(tmp_path / "Index.xml", HARMONY_7)
    named = read(tmp_path, tmp_path / IMAGE_7)
    assert (named.plate, named.run) == ("240624_1.1", "2024-06-24T11:48:44.5462111-04:00")
    assert (named.channel_name, named.timepoint) == ("Brightfield", 1)
    assert named.pixel_um == pytest.approx(0.296688132)
    assert named.stage_um == pytest.approx((-322.907, 0.0))
    assert named.acquired_at == datetime.fromisoformat("2024-06-24T11:48:56.763000-04:00")


def test_an_image_is_placed_before_its_index_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "P1__2024-06-24T11_48_44-Measurement 1" / "Images"
    layout = open_layout("phenix")
    early = layout(tmp_path, folder / IMAGE_7)
    assert early == Named("B03", 1, 1, "7", 1, "P1", "2024-06-24T11_48_44-Measurement 1")
    put(folder / "Index.idx.xml", HARMONY_7)
    late = layout(tmp_path, folder / IMAGE_7)
    assert late is not None
    assert (late.plate, late.run, late.channel_name) == (early.plate, early.run, "Brightfield")


def test_a_growing_index_is_read_as_far_as_it_is_complete(tmp_path: Path) -> None:
    head, _, tail = HARMONY_7.partition("<PositionX")
    index = put(tmp_path / "Index.xml", head)
    assert read(tmp_path, tmp_path / IMAGE_7).acquired_at is None
    with index.open("a", encoding="utf-8") as stream:
        stream.write("<PositionX" + tail)
    assert read(tmp_path, tmp_path / IMAGE_7).acquired_at is not None


def test_cq_wells_come_from_the_mlf_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "Image" / "W0029F0001T0001Z000C1.tif"
    assert (read(tmp_path, path).well, read(tmp_path, path).position) == (None, "W0029")
    mlf = put(tmp_path / "MeasurementData.mlf", CQ_HEAD)
    assert read(tmp_path, path).well is None
    with mlf.open("a", encoding="utf-8") as stream:
        stream.write(CQ_RECORD)
    named = read(tmp_path, path)
    assert (named.well, named.stage_um) == ("C05", (-1460.8, -1303.2))
    assert named.acquired_at == datetime.fromisoformat("2025-12-01T13:48:48.686+01:00")
    assert read(tmp_path, path, wells={"W0029": "H1"}).well == "H01"


def test_cq_details_name_plate_pixel_and_channel_and_stay_in_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "watched" / "measurement"
    path = root / "Image" / "W0029F0001T0001Z000C1.tif"
    put(root / "MeasurementDetail.mrf", CQ_DETAIL)
    put(tmp_path / "secret.mes", CQ_SETTINGS)
    named = read(root, path)
    assert (named.plate, named.channel_name) == ("Plate 12", "")
    assert named.pixel_um == pytest.approx(0.322837)
    put(root / "secret.mes", CQ_SETTINGS)
    assert read(root, path).channel_name == "Brightfield"


def test_what_the_name_says_is_believed_before_the_sidecar(tmp_path: Path) -> None:
    put(tmp_path / "MeasurementDetail.mrf", CQ_DETAIL)
    put(tmp_path / "MeasurementData.mlf", CQ_HEAD + CQ_RECORD.replace("Image/W0029F0001T0001Z000C1", IMAGE_CV))
    named = read(tmp_path, tmp_path / f"{IMAGE_CV}.tif")
    assert (named.plate, named.well, named.stage_um) == ("1053601756", "A01", (-1460.8, -1303.2))


def test_one_htd_in_the_plates_folder_serves_all_its_steps(tmp_path: Path) -> None:
    put(tmp_path / "P_Plate_1" / "P.HTD", '"HTSInfoFile", Version 1.0\n"WaveName1", "TL Phase"\n"WaveName2", "DAPI"\n')
    folder = tmp_path / "P_Plate_1" / "TimePoint_1" / "ZStep_1"
    assert read(tmp_path, folder / "P_A01_s1_w1.TIF").channel_name == "TL Phase"
    assert read(tmp_path, folder / "P_A01_s1_w3.TIF").channel_name == ""


def test_a_sidecar_above_the_watched_folder_is_not_read(tmp_path: Path) -> None:
    put(tmp_path / "Index.xml", HARMONY_7)
    inside = tmp_path / "Images"
    assert read(inside, inside / IMAGE_7).plate == ""
    assert read(tmp_path, inside / IMAGE_7).plate == "240624_1.1"


def test_micro_manager_channels_are_named_from_an_unfinished_metadata_txt(tmp_path: Path) -> None:
    folder = tmp_path / "acq_1" / "B03-Site_0"
    put(folder / "metadata.txt", '{"Summary": {"ChNames": ["Phase", "Cy5"], "Frames": 3}, "Metadata-B03')
    image = "img_channel{}_position000_time000000000_z000.tif"
    assert read(tmp_path, folder / image.format("000")).channel_name == "Phase"
    assert read(tmp_path, folder / image.format("001")).channel_name == "Cy5"
    assert read(tmp_path, folder / image.format("002")).channel_name == ""


# -- sidecars that are not to be trusted -------------------------------------------------------------------------------

BOMB = '<!DOCTYPE a [<!ENTITY x "boom"><!ENTITY y "&x;&x;&x;">]>'
THEFT = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize("doctype", [BOMB, THEFT, "<!DOCTYPE EvaluationInputData>"])
def test_a_document_type_is_refused_and_the_name_still_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, doctype: str
) -> None:
    head, _, tail = HARMONY_7.partition("\n")
    put(tmp_path / "Index.xml", f"{head}\n{doctype}\n{tail}")
    with caplog.at_level(logging.WARNING):
        readings = [read(tmp_path, tmp_path / IMAGE_7) for _ in range(3)]
    assert {(named.well, named.plate, named.channel_name) for named in readings} == {("B03", "", "")}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "declares a document type" in caplog.text


def test_an_oversized_sidecar_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecars, "MAX_BYTES", 100)
    put(tmp_path / "Index.xml", HARMONY_7)
    assert read(tmp_path, tmp_path / IMAGE_7).channel_name == ""


@pytest.mark.parametrize("wrong", ["nan", "-1", "0", "", "1e999", "far"])
def test_senseless_numbers_and_times_are_left_out(tmp_path: Path, wrong: str) -> None:
    text = HARMONY_7.replace("2.96688132474701E-07", wrong).replace("-0.000322907", "far")
    put(tmp_path / "Index.xml", text.replace("2024-06-24T11:48:56.7630001-04:00", "yesterday"))
    named = read(tmp_path, tmp_path / IMAGE_7)
    assert (named.pixel_um, named.stage_um, named.acquired_at) == (None, None, None)
    assert named.channel_name == "Brightfield"


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b"no xml at all", b"<a>" * 1000])
def test_a_sidecar_that_is_no_xml_costs_no_image_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "Index.xml").write_bytes(content)
    assert read(tmp_path, tmp_path / IMAGE_7).well == "B03"


def test_a_sidecar_is_parsed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    collector = sidecars._Collector

    def counted(wanted: frozenset[str], keep: frozenset[str]) -> sidecars._Collector:
        opened.append(wanted)
        return collector(wanted, keep)

    monkeypatch.setattr(sidecars, "_Collector", counted)
    index = put(tmp_path / "Index.xml", HARMONY_7)
    for _ in range(5):
        read(tmp_path, tmp_path / IMAGE_7)
    assert len(opened) == 1
    index.write_text(HARMONY_7.replace("Brightfield", "Digital Phase Contrast"), encoding="utf-8")
    assert read(tmp_path, tmp_path / IMAGE_7).channel_name == "Digital Phase Contrast"
    assert len(opened) == 2


@pytest.mark.realdata
def test_reading_a_sidecar_leaves_the_folder_as_it_was(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "vendor" / "phenix_v5" / "images"
    copy = shutil.copytree(source, tmp_path / "images")
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    read(tmp_path, copy / "r01c01f01p01-ch1sk1fk1fl1.tiff")
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == before
