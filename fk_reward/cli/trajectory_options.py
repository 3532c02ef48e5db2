"""The options of commands and benchmarks that say how a trajectory is run: what each is called and says."""

from __future__ import annotations

import typer

SOLVER = typer.Option(help="ddim-100, sde-dpmsolver++-20, lcm-4, ...")
STEPS = typer.Option(help="Scheduler steps.", min=1, show_default="the solver's, or 50")
GUIDANCE_SCALE = typer.Option(
    help="Classifier-free guidance.", show_default="the solver's, 3 for shapes-sd, or the pipeline's own"
)
PREVIEW = typer.Option(help="Decodes at the scoring steps: auto, taesd, taesdxl, vae/2, a hub id, a folder, ...")
