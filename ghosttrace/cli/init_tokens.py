"""The command `ghosttrace init-tokens`: the four delimiters added to a model."""

from pathlib import Path
from typing import Annotated

import typer

from ghosttrace.cli.options import DelimiterMapping, Delimiters, parse_delimiter_mapping
from ghosttrace.errors import UserError


def init_tokens(
    model: Annotated[str, typer.Argument(help="Folder or hub id.")],
    out: Annotated[Path, typer.Argument(help="A new folder for the model with its delimiters.")],
    mask_delimiters: Delimiters = None,
    map_delimiters: DelimiterMapping = None,
    seed: Annotated[int, typer.Option(help="Of the noise on the new embeddings.")] = 42,
) -> None:
    """Add the four delimiters to a model, each embedding the mean of related words."""
    from transformers import AutoModelForCausalLM

    from ghosttrace.model.checkpoint import (
        CONFIG_KEY,
        load_config,
        load_tokenizer,
        recorded_policy,
        resolve_policy,
        resolve_pretrained_path,
    )
    from ghosttrace.training.delimiters import add_delimiters

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something already: give a new folder")
    config, tokenizer, names = load_config(model), load_tokenizer(model), parse_delimiter_mapping(map_delimiters)
    if (getattr(config, CONFIG_KEY, None) or {}).get("stages"):
        raise UserError(f"{model} was trained with its delimiters already: begin from a model that has none")
    policy = resolve_policy(recorded_policy(config), mask_delimiters=mask_delimiters, keep_last_n_blocks=-1)
    network = AutoModelForCausalLM.from_pretrained(resolve_pretrained_path(model), dtype="auto")
    added = add_delimiters(network, tokenizer, seed, names)
    setattr(network.config, CONFIG_KEY, {"policy": policy.to_dict()} | ({"delimiters": names} if names else {}))
    network.save_pretrained(out)
    tokenizer.save_pretrained(out)
    typer.echo(f"Written to {out}: {', '.join(f'{name} {number}' for name, number in added.items()) or 'none missing'}")
