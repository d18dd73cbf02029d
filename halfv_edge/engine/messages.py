"""Messages in OpenAI's form, read with suspicion: whatever is wrong with one is a sentence that quotes it."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict

from halfv_edge.engine import images
from halfv_edge.engine.images import Picture, Source
from halfv_edge.errors import HalfVError

Role = Literal["system", "user", "assistant"]
ROLES = ("system", "user", "assistant")
TYPES = ("text", "image_url")


class TextPart(TypedDict):
    """Text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(TypedDict, total=False):
    """Where a picture is."""

    url: Source
    """A data: URL, a path or a file: URL, of a video too; in a program also bytes, a PIL image or an array. Nothing is
    fetched."""
    detail: str
    """Not used: `image_max_tokens` decides."""


class ImagePart(TypedDict):
    """A picture in a message of the user."""

    type: Literal["image_url"]
    image_url: ImageUrl | Source


Part: TypeAlias = TextPart | ImagePart
Content: TypeAlias = str | Sequence[Part]


class Message(TypedDict):
    """One message, as OpenAI's API has them."""

    role: Role
    content: Content


@dataclass(frozen=True, slots=True)
class Said:
    """A message that was read: its texts and pictures, in their order."""

    role: Role
    parts: list[str | Picture]

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    def message(self) -> Message:
        """In OpenAI's form again; text alone is a string."""
        if all(isinstance(part, str) for part in self.parts):
            return {"role": self.role, "content": self.text}
        return {"role": self.role, "content": [_part(part) for part in self.parts]}


def read_messages(messages: Sequence[Message]) -> list[Said]:
    """Every message, its pictures decoded."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise HalfVError(f"messages = {_quoted(messages)} is not valid: it must be a list of messages.")
    return [_read_message(message, f"messages[{at}]") for at, message in enumerate(messages)]


def read_content(content: Content, place: str) -> list[str | Picture]:
    """The texts and pictures of a message's content; `place` is what an error calls it."""
    if isinstance(content, str):
        return [content] if content else []
    if isinstance(content, (bytes, Mapping)) or not isinstance(content, Sequence):
        raise HalfVError(f"{place} = {_quoted(content)} is not valid: it must be text, or a list of parts.")
    parts = [_read_part(part, f"{place}[{at}]") for at, part in enumerate(content)]
    return [part for part in parts if part != ""]


def _read_message(message: object, place: str) -> Said:
    if not isinstance(message, Mapping):
        raise HalfVError(f"{place} = {_quoted(message)} is not valid: it must be an object with role and content.")
    role = message.get("role")
    if role not in ROLES:
        raise HalfVError(f"{place}: role = {_quoted(role)} is not valid: it must be one of {', '.join(ROLES)}.")
    _check_rest(message, ("role", "content"), place)
    said = Said(role, read_content(message.get("content", None), f"{place}: content"))
    if role != "user" and any(isinstance(part, Picture) for part in said.parts):
        raise HalfVError(f"{place} has a picture, and its role is {role!r}: pictures belong to the user's messages.")
    return said


def _read_part(part: object, place: str) -> str | Picture:
    if not isinstance(part, Mapping):
        raise HalfVError(f"{place} = {_quoted(part)} is not valid: it must be an object with a type.")
    kind = part.get("type")
    if kind not in TYPES:
        raise HalfVError(f"{place}: type = {_quoted(kind)} is not valid: it must be one of {', '.join(TYPES)}.")
    _check_rest(part, ("type", kind), place)
    value = part.get(kind)
    if kind == "text":
        if not isinstance(value, str):
            raise HalfVError(f"{place}: text = {_quoted(value)} is not valid: it must be text.")
        return value
    if isinstance(value, Mapping):
        _check_rest(value, ("url", "detail"), f"{place}: image_url")
        value = value.get("url")
    if value is None:
        raise HalfVError(f"{place}: image_url has no url: give a data: URL or a path.")
    try:
        return images.load(value, videos=True)
    except HalfVError as error:
        raise HalfVError(f"{place}: {error}") from error


def _check_rest(given: Mapping[Any, Any], known: Sequence[str], place: str) -> None:
    """What would change the meaning is refused; empty fields, as in answers of OpenAI's API, are not."""
    for key, value in given.items():
        is_empty = value is None or (isinstance(value, (str, list, tuple, dict)) and not value)
        if key not in known and not is_empty:
            raise HalfVError(f"{place} has {_quoted(key)}, which cannot be used: leave all but {', '.join(known)} out.")


def _part(part: str | Picture) -> Part:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": part.url()}}


def _quoted(value: object) -> str:
    """Enough of a value to know it by, on one line."""
    try:
        return _short.repr(value).replace("\n", " ")
    except Exception:  # a repr is anybody's code
        return f"a {type(value).__name__}"


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
