"""The command that puts a model together of parts: compose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sonotune.cli.shared import Json, app, print_result
from sonotune.progress import phase


@app.command()
def compose(
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    words: Annotated[
        list[str], typer.Argument(metavar="SETTING=VALUE...", help="Parts and how they are joined, or config=FILE.")
    ],
    as_json: Json = False,
) -> None:
    """Compose a speech model of an audio encoder, a projector and a language model; then train its new parts.

    sonotune compose FOLDER encoder=openai/whisper-small language_model=Qwen/Qwen2.5-0.5B projector.kind=perceiver

    Settings: encoder, encoder_revision, language_model, language_model_revision, projector.kind (linear, mlp,
    perceiver, conv), projector.downsample, projector.hidden_size, projector.latents, projector.depth,
    projector.heads, fusion (prompt, cross_attention), cross_attention.layers, cross_attention.heads, prompt, chat,
    random_weights, seed.
    """
    from sonotune.config.composition import load_composition

    with phase("starting"):
        from sonotune.models.composed.build import compose as compose_model

    asked = load_composition(words)
    module = compose_model(folder, **asked.arguments())
    rows = {name: sum(p.numel() for p in part.parameters()) for name, part in module.named_children()}
    parameters = sum(parameter.numel() for parameter in module.parameters())
    lines = [
        f"{folder}: {parameters:,} parameters ({', '.join(f'{name} {size:,}' for name, size in rows.items())})",
        f"train    sonotune train model.checkpoint={folder} data.train=train.jsonl",
    ]
    body = {"model": str(folder), "parameters": parameters, "parts": rows, "settings": asked.arguments()}
    print_result(body, as_json=as_json, lines=lines)
