"""The plates of one watched folder: which run a file belongs to, and which channel and plane of it are scored."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from acquisition.layouts import Named
from acquisition.tree import SeenFile
from db import plates as db_plates
from sesmo_live.errors import ImageError
from sesmo_live.ingest.choice import GUESSED, NOT_CHOSEN, choose_channel, choose_plane
from sesmo_live.ingest.placing import WatchPlan, classify, file_time, plate_name, source_folder, surprise
from sesmo_live.records import ImageState

log = logging.getLogger(__name__)


@dataclass(slots=True)
class PlateState:
    """One run of a plate: the channels (with labels) and focal planes met so far, and what was chosen of them."""

    plate_id: int
    name: str
    run: str
    labels: dict[str, str] = field(default_factory=dict)
    planes: set[int] = field(default_factory=set)
    channel: str | None = None
    z: int | None = None
    why: str = ""
    reviewed: bool = False
    timed: bool = True
    """Whether its images say when they were taken, as far as is known."""

    def label(self, channel: str, label: str) -> None:
        """Note a channel; a label once learned from a file or an index is not lost to a bare number."""
        if channel not in self.labels or (label and label != channel):
            self.labels[channel] = label or channel

    def not_chosen(self, channel: str, z: int) -> str:
        """Return why an image of this channel and focal plane is not scored, empty if it is."""
        if self.channel is None:
            return f"{NOT_CHOSEN}channel {channel or 'without a name'}; {self.why}"
        if channel != self.channel:
            return f"{NOT_CHOSEN}channel {channel or 'without a name'}; this plate is scored on {self.why}"
        if z != self.z:
            return f"{NOT_CHOSEN}focal plane {z}; this plate is scored on {self.why}"
        return ""


class PlateBook:
    """The runs of plates that lie in one watched folder."""

    def __init__(self, plan: WatchPlan) -> None:
        self._plan = plan
        self._plates: dict[tuple[str, str], PlateState] = {}

    def name(self, connection: Connection, seen: SeenFile) -> tuple[Named | None, PlateState | None, ImageState, str]:
        """Find out what a file's name says: name and plate if it is to be read, the state it starts in, the reason."""
        try:
            named, verdict, reason = classify(self._plan, seen.path)
            if named is None or verdict != "pending":
                return None, None, verdict, reason
            return named, self.plate_of(connection, named, seen), verdict, reason
        except SQLAlchemyError:
            raise
        except ImageError as error:
            return None, None, "failed", str(error)
        except Exception as error:  # noqa: BLE001 — the border of one file: its name must not end the night
            return None, None, "failed", surprise(seen.path, error)

    def plate_of(self, connection: Connection, named: Named, file: SeenFile) -> PlateState:
        """Return the run that a file belongs to: the layout's own label, else its folder's first date."""
        name = plate_name(self._plan, named, file.path)
        folder = source_folder(self._plan, file.path, named.plate or name)
        key = (name, named.run or folder)
        if key not in self._plates:
            day = file_time(self._plan, named, file.mtime_ns).astimezone(self._plan.zone).date().isoformat()
            run = named.run or db_plates.run_in_folder(connection, name, folder, self._plan.source) or day
            options = self._plan.options
            plate_id = db_plates.find_or_add_plate(connection, name, run, folder, self._plan.source)
            given = {
                "layout": options.layout,
                "wells": options.plate_wells,
                "frame_interval_s": options.frame_interval_s,
                "treated_at": options.treated_at,
            }
            db_plates.describe_plate(connection, plate_id, {k: v for k, v in given.items() if v is not None})
            channel, z, why, channels, planes = db_plates.choice_of(connection, plate_id)
            self._plates[key] = PlateState(plate_id, name, run, channels, set(planes), channel, z, why)
        plate = self._plates[key]
        if named.channel:  # known from the name, before the file is even complete
            plate.label(named.channel, named.channel_name)
        return plate

    def review(self, connection: Connection) -> list[PlateState]:
        """Return the plates of earlier runs whose choice is another now, as the configuration changed."""
        changed = []
        for plate in self._plates.values():
            if not plate.reviewed and plate.why and self.choose(connection, plate, ()):
                changed.append(plate)
            plate.reviewed = True
        return changed

    def doubt_times(self, plate: PlateState) -> None:
        """Warn, once a plate, that the times of its files stand for those of its images."""
        if plate.timed and self._plan.options.frame_interval_s is None:
            text = "its images do not say when they were taken; their file times are used, which a copy may change"
            log.warning("plate %s: %s; set frame_interval_s if the hours look wrong", plate.name, text)
        plate.timed = False

    def choose(self, connection: Connection, plate: PlateState, seen: Iterable[tuple[str, str, int]]) -> bool:
        """Note (channel, label, focal plane) of images and choose anew; say whether an earlier choice changed."""
        before = (dict(plate.labels), set(plate.planes))
        for channel, label, z in seen:
            plate.label(channel, label)
            plate.planes.add(z)
        channel_chosen, why = choose_channel(plate.labels, self._plan.options.channel)
        z_chosen, why_z = choose_plane(plate.planes, self._plan.options.z)
        first = not plate.why
        changed = first or (channel_chosen, z_chosen) != (plate.channel, plate.z)
        if changed:
            plate.channel, plate.z, plate.why = channel_chosen, z_chosen, "; ".join(filter(None, (why, why_z)))
            level = logging.WARNING if GUESSED in plate.why else logging.INFO
            log.log(level, "plate %s: scoring %s", plate.name, plate.why)
        if changed or before != (plate.labels, plate.planes):
            choice = (plate.channel, plate.z, plate.why)
            db_plates.set_choice(connection, plate.plate_id, *choice, plate.labels, sorted(plate.planes))
        return changed and not first
