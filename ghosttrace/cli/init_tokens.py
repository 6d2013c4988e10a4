"""The command `ghosttrace init-tokens`: add the four delimiters to a model."""

from pathlib import Path
from typing import Annotated

import typer

from ghosttrace.cli.options import DelimiterMapping, Delimiters, hide_loading_bar, parse_delimiter_mapping
from ghosttrace.errors import UserError
from ghosttrace.runs.paths import check_path


def init_tokens(
    model: Annotated[str, typer.Argument(help="Folder or hub id of the model.")],
    out: Annotated[Path, typer.Argument(help="New folder for the model with delimiters.")],
    mask_delimiters: Delimiters = None,
    map_delimiters: DelimiterMapping = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(
            help="Jinja file that replaces the tokenizer's chat template, for example to leave out its system prompt. "
            "Default: the tokenizer's own."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the noise on the new embeddings.")] = 42,
) -> None:
    """Add the four delimiters to a model and its tokenizer.

    Each new embedding starts as the mean of the embeddings of related words, plus noise.
    """
    from transformers import AutoModelForCausalLM

    from ghosttrace.model.checkpoint import load_config, load_tokenizer, resolve_pretrained_path
    from ghosttrace.model.erasure_config import (
        CONFIG_KEY,
        recorded_law,
        recorded_policy,
        require_memento,
        resolve_policy,
    )
    from ghosttrace.training.delimiters import add_delimiters

    check_path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder: give a new one")
    config, tokenizer, token_names = load_config(model), load_tokenizer(model), parse_delimiter_mapping(map_delimiters)
    require_memento(recorded_law(config), "init-tokens")
    if (getattr(config, CONFIG_KEY, None) or {}).get("stages"):
        raise UserError(f"{model} has already been trained with delimiters: start from a model without them")
    policy = resolve_policy(recorded_policy(config), mask_delimiters=mask_delimiters, keep_last_n_blocks=-1)
    hide_loading_bar()
    if chat_template is not None:
        tokenizer.chat_template = read_chat_template(chat_template)
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {model} has no chat template, so no assistant's turn could be found: give "
            "--chat-template a Jinja file"
        )
    network = AutoModelForCausalLM.from_pretrained(resolve_pretrained_path(model), dtype="auto")
    added = add_delimiters(network, tokenizer, seed, token_names)
    setattr(
        network.config, CONFIG_KEY, {"policy": policy.to_dict()} | ({"delimiters": token_names} if token_names else {})
    )
    network.save_pretrained(out)
    tokenizer.save_pretrained(out)
    typer.echo(
        f"Written to {out}: {', '.join(f'{name} {token_id}' for name, token_id in added.items()) or 'none missing'}"
    )
    typer.echo(
        "Its config.json records keep_last_n_blocks=-1, which erases nothing: train it with ghosttrace sft, or measure "
        "it as it is with --keep-last-n-blocks 0."
    )


def read_chat_template(path: Path) -> str:
    """Return the text of a chat template.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: give --chat-template a Jinja file") from error
