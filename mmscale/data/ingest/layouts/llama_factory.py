"""LLaMA-Factory: dataset_info.json, which names data sets, and their files beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmscale.data.account import Account, Notice
from mmscale.data.ingest.conversation import (
    CALL,
    OPENAI,
    ROLES,
    SHAREGPT,
    ConversationForm,
    conversation_columns,
)
from mmscale.data.ingest.conversation_tables import ENDINGS, RowColumns, table_rows
from mmscale.data.ingest.file_splits import tables_in
from mmscale.data.ingest.layout import LayoutOptions, Split, SplitRows
from mmscale.data.ingest.speech_corpus import check_columns, wanted_splits
from mmscale.errors import UserError
from mmscale.json_file import read_object
from mmscale.registry import LAYOUTS

ELSEWHERE = Notice(
    "data sets whose files are not here, left out",
    "download them beside dataset_info.json and set file_name",
)
PREFERENCES = Notice(
    "data sets of preferred and rejected answers, left out", "they are not conversations"
)
OTHER_FORMATS = Notice("data sets that are no JSON, left out", "write them as JSON lines")

_TABLE = "dataset_info.json"
_HUBS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
# By the tag that dataset_info.json gives, its default and the role it names.
_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
    "observation_tag": "tool",
    "function_tag": CALL,
}


class LlamaFactory:
    """Every data set with files is a split of its own, under its name."""

    name = "llama_factory"
    summary = "LLaMA-Factory: dataset_info.json (alpaca and sharegpt) and the files it names"

    def matches(self, source: Path) -> bool:
        try:
            infos = read_object(_table(source), "")
        except UserError:
            return False
        return bool(infos) and all(
            isinstance(info, dict) and ("file_name" in info or any(hub in info for hub in _HUBS))
            for info in infos.values()
        )

    def splits(self, source: Path, options: LayoutOptions, account: Account) -> dict[str, Split]:
        check_columns(options, self.name)
        table = _table(source)
        infos = read_object(table, f"name the folder that holds {_TABLE}")
        splits: dict[str, Split] = {}
        for name in wanted_splits(infos, options.splits, source):
            where = f"{table}: {name}"
            if not isinstance(infos[name], dict):
                raise UserError(f"{where}: not an object; write {{file_name: …}}")
            notice, files = _files(table.parent, infos[name], where)
            if notice is None:
                columns = _columns(infos[name], where, account)
                splits[name] = SplitRows(table.parent, table_rows(files, columns, account))
            elif name in options.splits:
                raise UserError(f"{where}: of the {notice.what}; {notice.remedy}")
            else:
                account.note(notice, name)
        if not splits:
            raise UserError(f"{table}: names no file of conversations here; correct file_name")
        return splits


def _table(source: Path) -> Path:
    return source if source.name == _TABLE else source / _TABLE


def _files(folder: Path, info: dict[str, Any], where: str) -> tuple[Notice | None, list[Path]]:
    """The files of a data set, or why it has none that are read."""
    name = info.get("file_name")
    if info.get("ranking"):
        return PREFERENCES, []
    if not isinstance(name, str) or not name:
        if not any(hub in info for hub in _HUBS):
            raise UserError(f"{where}: no file_name; name its file")
        return ELSEWHERE, []
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{where}: {name!r} lies outside {folder}; copy it into that folder")
    if not (folder / name).exists():
        return ELSEWHERE, []
    files = tables_in(folder / name, ENDINGS)
    return (None, files) if files else (OTHER_FORMATS, [])


def _columns(info: dict[str, Any], where: str, account: Account) -> RowColumns:
    """What makes columns of a row, by the data set's own names for them."""
    names, tags = _names(info, "columns", where), _names(info, "tags", where)
    formatting = info.get("formatting", "alpaca")
    form = replace(
        OPENAI,
        images=(names["images"],) if "images" in names else (),
        audios=(names["audios"],) if "audios" in names else (),
        system=names.get("system"),
        tools=names.get("tools"),
        marks="images" in names or "audios" in names,
    )
    if formatting == "alpaca":
        return lambda row, at: _alpaca_columns(row, names, form, at, account)
    if formatting not in ("sharegpt", "openai"):
        raise UserError(f"{where}: formatting is {formatting!r}; write alpaca or sharegpt")
    usual = OPENAI if formatting == "openai" else SHAREGPT
    own = {tags[tag].lower(): role for tag, role in _TAGS.items() if tag in tags}
    form = replace(
        form,
        turns=names.get("messages", usual.turns),
        role=tags.get("role_tag", usual.role),
        content=tags.get("content_tag", usual.content),
        roles=ROLES | own,
    )
    return lambda row, at: conversation_columns(row, form, at, account)


def _alpaca_columns(
    row: dict[str, Any], names: dict[str, str], form: ConversationForm, where: str, account: Account
) -> dict[str, Any]:
    """Instruction and input are one turn. A data set that names a prompt alone is one of texts."""
    rest = dict(row)
    prompt, query, response, history = (
        rest.pop(names.get(name, default), None)
        for name, default in (
            ("prompt", "instruction"), ("query", "input"), ("response", "output"),
            ("history", "history"),
        )
    )  # fmt: skip
    if response is None and "prompt" in names and "response" not in names:
        if not isinstance(prompt, str) or not prompt:
            raise UserError(f"{where}: {names['prompt']} is {prompt!r:.40}; write a text")
        return {**rest, "text": prompt}
    if response is None:
        raise UserError(
            f"{where}: no {names.get('response', 'output')}; write the answer, or remove the row"
        )
    asked = "\n".join(str(part) for part in (prompt, query) if part)
    turns = [*_history(history, where), ("user", asked), ("assistant", response)]
    rest[form.turns] = [{form.role: role, form.content: content} for role, content in turns]
    return conversation_columns(rest, form, where, account)


def _history(history: Any, where: str) -> Iterator[tuple[str, Any]]:
    for number, pair in enumerate(history or [], start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f"{where}: history {number} is {pair!r:.40}; write [question, answer]")
        yield from (("user", pair[0]), ("assistant", pair[1]))


def _names(info: dict[str, Any], part: str, where: str) -> dict[str, str]:
    names = info.get(part) or {}
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{where}: {part} is {names!r:.40}; write names by names")
    return names


LAYOUTS.register("llama_factory", LlamaFactory())
