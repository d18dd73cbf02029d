"""The Python API: load a model, open a chat, ask about pictures, iterate over the answer."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING

from halfv_edge.engine.chat import Chat, Mode
from halfv_edge.engine.encoder import Encoder
from halfv_edge.engine.many import MOST_TOGETHER, Many, Outcome, Question, read_question
from halfv_edge.engine.messages import Message, Said, read_messages
from halfv_edge.engine.options import AnswerFields, AnswerOptions, ModelFields, ModelOptions, check_whole
from halfv_edge.engine.runtime import Runtime
from halfv_edge.errors import HalfVError
from halfv_edge.hub.find import locate_files
from halfv_edge.profile.profile import Profile

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Model:
    """A language model with its vision encoder. Make one with `Model.load`, close it or use it in a `with`.

    Any thread may use it and its chats: one lock per model lets one native call run at a time, so that two chats that
    answer at once take turns token by token. A single chat answers one question at a time.
    """

    def __init__(self, runtime: Runtime):
        self.runtime = runtime

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] | None = None,
        mmproj: str | os.PathLike[str] | None = None,
        *,
        options: ModelOptions | None = None,
        **fields: Unpack[ModelFields],
    ) -> Model:
        """Load a model and its encoder.

        Args:
            model: A GGUF's path, a Hugging Face repository ("owner/repo" or "owner/repo:Q4_K_M", downloaded once), a
                name of `halfv chat --list-models`; None is the small demo model that comes along.
            mmproj: The encoder's GGUF; looked for beside the model, or in the repository, when not given.
            options: Settings; the same ones may be given by name instead, and go before these.

        Returns:
            The model, to be closed or used in a `with`.

        Example:
            with Model.load("model.gguf", n_ctx=4096) as model:
                print(model.chat().answer("What is this?", ["cat.jpg"]))
        """
        wanted = dataclasses.replace(options or ModelOptions(), **fields)
        files = locate_files(model, mmproj)
        return cls(Runtime.load(files.model, files.mmproj, wanted))

    @property
    def path(self) -> Path:
        """The language model's GGUF."""
        return self.runtime.path

    @property
    def encoder(self) -> Encoder:
        """The vision encoder."""
        return self.runtime.encoder

    @property
    def profile(self) -> Profile | None:
        """The profile in force, None when the model runs whole."""
        return self.runtime.profile

    @property
    def profile_source(self) -> str:
        """Where the profile is from: "flag", "sidecar", "gguf", "preset NAME", "off" or "environment"."""
        return self.runtime.profile_source

    @property
    def notes(self) -> list[str]:
        """What a person should know of this model that is no error."""
        return self.runtime.notes

    @property
    def n_layer(self) -> int:
        """Layers of the language model."""
        return self.runtime.n_layer

    def tokenize(self, text: str) -> list[int]:
        """Cut text into tokens, as llama.cpp does it in a prompt.

        Args:
            text: Special tokens are known by their text; none are added.

        Returns:
            Token numbers.
        """
        return self.runtime.tokenize(text)

    def piece(self, token: int, special: bool = False) -> bytes:
        """The text of a token.

        Args:
            token: Its number.
            special: Write special tokens out; else their text is empty.

        Returns:
            UTF-8, of which a token may be a part of a character.
        """
        return self.runtime.piece(token, special)

    def chat(self, system: str | None = None, *, messages: Sequence[Message] = (), mode: Mode = "prepare") -> Chat:
        """Open a conversation.

        Args:
            system: The system message.
            messages: What was said before, in OpenAI's form; the last one is not the user's, who speaks next.
            mode: "prepare" chooses most of a picture's tokens as soon as it is there, so that the answer comes sooner;
                "exact" waits for the question, as published.

        Returns:
            A chat with a KV cache of its own: close those you leave.

        Raises:
            HalfVError: A message is not valid, or there is no memory for another context.

        Example:
            chat = model.chat("Answer in one sentence.")
            print(chat.answer("What is this?", "cat.jpg"))
            later = model.chat(messages=chat.messages)
        """
        history = read_messages(messages)
        if history and history[-1].role == "user":
            raise HalfVError(
                f"messages[{len(history) - 1}] is a question that waits for its answer: leave it out, and give its "
                "content to chat.ask(), or give all messages to model.answer()."
            )
        if system is not None and not isinstance(system, str):
            raise HalfVError(parameter="system", value=system, rule="text")
        if system:
            if history and history[0].role == "system":
                raise HalfVError("Both system and messages[0] are system messages: give one of them.")
            history.insert(0, Said("system", [system]))
        return self._open(history, mode)

    def _open(self, history: Sequence[Said], mode: Mode) -> Chat:
        if mode not in ("prepare", "exact"):
            raise HalfVError(parameter="mode", value=mode, rule="'prepare' or 'exact'")
        with self.runtime.lock:
            self.runtime.check_open()
            chat = Chat(self.runtime, self.runtime.context(), mode)
        try:
            return chat._begin(history)
        except BaseException:
            chat.close()
            raise

    def answer(
        self, messages: Sequence[Message], *, options: AnswerOptions | None = None, **fields: Unpack[AnswerFields]
    ) -> str:
        """Answer the last of these messages, in a conversation that is forgotten afterwards.

        Args:
            messages: In OpenAI's form; the last one is the user's.
            options: How to answer; the same settings may be given by name instead, and go before these.

        Returns:
            The answer's text.

        Raises:
            HalfVError: A message is not valid, or they do not fit into the context.

        Example:
            picture = {"type": "image_url", "image_url": {"url": "cat.jpg"}}
            question = {"type": "text", "text": "What is this?"}
            print(model.answer([{"role": "user", "content": [picture, question]}]))
        """
        said = read_question(messages)
        wanted = dataclasses.replace(options or AnswerOptions(), **fields)
        with self._open(said[:-1], "exact") as chat:
            return chat._ask(said[-1].parts, wanted).read()

    def answer_many(
        self,
        questions: Iterable[Question],
        *,
        together: int = 4,
        options: AnswerOptions | None = None,
        **fields: Unpack[AnswerFields],
    ) -> Iterator[Outcome]:
        """Answer questions that have nothing to do with each other, several at a time.

        Each is answered as `answer` would; their tokens are computed together, which takes less time than one after
        the other. One that fails is an outcome with an error, and the others go on.

        Args:
            questions: Each one a pair of a question and its pictures, as `chat.ask` takes them, or messages in OpenAI's
                form that end with it. They are taken as they are needed, so this may be a generator.
            together: So many at a time; each needs a KV cache of the model's n_ctx.
            options: How to answer; the same settings may be given by name instead, and go before these.

        Returns:
            Outcomes in the order of the questions, each as soon as it and those before it are there.

        Raises:
            HalfVError: A setting is not valid, or there is no memory for the context.

        Example:
            questions = [("What is this?", "cat.jpg"), ("And this?", "dog.png")]
            for outcome in model.answer_many(questions, max_tokens=50):
                print(outcome.error or outcome.text)
        """
        check_whole("together", together, 1, MOST_TOGETHER, optional=False)
        wanted = self.runtime.seeded(dataclasses.replace(options or AnswerOptions(), **fields))
        if isinstance(questions, Sized):
            together = max(1, min(together, len(questions)))
        return Many(self.runtime, wanted, together).outcomes(questions)

    def close(self) -> None:
        """Close the chats and free everything."""
        self.runtime.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
