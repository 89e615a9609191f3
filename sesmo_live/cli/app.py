"""The commands, gathered."""

import typer

from sesmo_live.cli import (
    acquisition,
    bench,
    care,
    detection,
    doctor,
    figures,
    images,
    learning,
    queries,
    recovery,
    screening,
    serve,
    service,
)

app = typer.Typer(
    name="sesmo-live",
    help="Live senescence scores from phase-contrast plate images, without a stain.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(service.demo)
app.command()(service.run)
app.command()(service.score)
app.command()(serve.serve)
app.command()(acquisition.acquire)
app.command()(images.crop)
app.command()(images.simulate)
app.command()(figures.check)
app.command()(figures.montage)
app.command()(figures.explain)
app.command()(detection.train_detector)
app.command()(learning.train)
app.command()(learning.validate)
app.command()(queries.plate)
app.command()(queries.timecourse)
app.command()(queries.compound)
app.command()(queries.images)
app.command()(screening.hits)
app.command()(screening.compare)
app.command()(screening.export)
app.command()(recovery.retry)
app.command()(doctor.doctor)
app.command()(bench.bench)
care.model_app.command(name="calibrate")(learning.model_calibrate)
app.add_typer(care.platemap_app, name="platemap")
app.add_typer(care.model_app, name="model")
app.add_typer(care.db_app, name="db")
