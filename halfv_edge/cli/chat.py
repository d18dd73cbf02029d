"""`halfv chat`: a conversation about pictures, or one answer for a script."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from halfv_edge.cli import answer_stats, flags, last_chat
from halfv_edge.cli.console import Console
from halfv_edge.cli.errors import CODES, INTERRUPTED
from halfv_edge.errors import HalfVError
from halfv_edge.hub.find import MEMORY_NOTE, known_models

if TYPE_CHECKING:
    from halfv_edge.cli.session import Session
    from halfv_edge.engine.chat import Chat
    from halfv_edge.engine.images import Picture


def add_command(commands: flags.Commands) -> None:
    """Put `chat` among the commands."""
    text = "talk about pictures with a vision-language model"
    command = commands.add_parser("chat", help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=CODES)
    command.add_argument(
        "images", metavar="IMAGE", nargs="*", help="pictures that the first question is about (-: from stdin)"
    )
    command.add_argument(
        "-p", "--prompt", metavar="TEXT", help="answer this and exit; the answer alone is on stdout (- reads stdin)"
    )
    command.add_argument(
        "-c", "--continue", dest="go_on", action="store_true", help="go on with the last conversation, and its model"
    )
    command.add_argument("--forget", action="store_true", help="do not keep this conversation for --continue")
    command.add_argument(
        "--json", action="store_true", help="with -p: one JSON object with the answer and what it took"
    )
    command.add_argument("--list-models", action="store_true", help="names for -m, from where, and what they need")
    command.add_argument("--no-color", action="store_true", help="plain text; so does NO_COLOR in the environment")
    flags.add_flags(command)
    command.add_argument("--draft", metavar="TWIG.gguf", help="a twig from `halfv twig`, which drafts the answers")
    answers = command.add_argument_group("answers")
    answers.add_argument("--system", metavar="TEXT", help="the system message")
    answers.add_argument("--max-tokens", metavar="N", type=flags.positive, help="of an answer (as many as fit)")
    answers.add_argument(
        "--temp", metavar="T", type=flags.number, default=0.2, help="0: always the likeliest (%(default)s)"
    )
    answers.add_argument("--top-k", metavar="K", type=flags.integer, default=40, help="0: all (%(default)s)")
    answers.add_argument("--top-p", metavar="P", type=flags.number, default=0.95, help="1: off (%(default)s)")
    answers.add_argument("--min-p", metavar="P", type=flags.number, default=0.05, help="0: off (%(default)s)")
    answers.add_argument("--seed", metavar="N", type=flags.integer, help="the same answer every time")
    form = answers.add_mutually_exclusive_group()
    form.add_argument("--grammar", metavar="FILE", help="answers follow this GBNF grammar")
    form.add_argument("--json-schema", metavar="FILE", help="answers are JSON of this schema")
    command.set_defaults(run=_chat)


def _chat(args: argparse.Namespace) -> int:
    if args.list_models:
        print(known_models())
        print(f"{MEMORY_NOTE} Nobody has tried these files with this version.", file=sys.stderr)
        return 0
    console = Console(False if args.no_color else None)
    if args.json and args.prompt is None:
        raise HalfVError("--json needs a question: give it with -p.")
    if "-" in args.images and args.prompt in (None, "-"):
        raise HalfVError("A picture from stdin (-) leaves no room for questions there: give one with -p.")
    said = last_chat.load(args) if args.go_on else []
    question = _question(args.prompt)
    pictures = flags.read_images(args.images)
    sampling = _sampling(args)
    model = flags.load(args, console)
    from halfv_edge.cli.session import Session

    with model:
        if args.grammar:
            _check_grammar(args.grammar, sampling["grammar"], model.runtime.vocab)
        exact = args.exact or (question is not None and not args.prepare)
        chat = model.chat(args.system, messages=said, mode="exact" if exact else "prepare")
        session = Session(chat, console, sampling, args.image_max_tokens, on_asked=lambda: _save(chat, args, console))
        try:
            if question is not None:
                return session.leave(_answer_once(session, question, pictures, args.json))
            for picture in pictures:
                session.give(picture)
            return session.converse()
        except KeyboardInterrupt:  # while a script waited for a picture
            console.say("halfv: interrupted.")
            return session.leave(INTERRUPTED)


def _save(chat: Chat, args: argparse.Namespace, console: Console) -> None:
    """For --continue; an answer is an answer without it too."""
    if args.forget:
        return
    try:
        last_chat.save(chat.messages, args)
    except (HalfVError, OSError) as error:
        console.say(f"--continue will not know of this: {error}")


def _question(prompt: str | None) -> str | None:
    if prompt is None:
        return None
    question = sys.stdin.read() if prompt == "-" else prompt
    if not question.strip():
        raise HalfVError(f"The question {'on stdin' if prompt == '-' else repr(prompt)} is empty: ask something.")
    return question.rstrip("\n") if prompt == "-" else question


def _sampling(args: argparse.Namespace) -> dict[str, Any]:
    """What Chat.ask takes, checked as far as that goes without a model."""
    from halfv_edge.engine.options import AnswerOptions
    from halfv_edge.engine.sampling import grammar_of

    settings = {"temperature": args.temp, "top_k": args.top_k, "top_p": args.top_p, "min_p": args.min_p}
    settings |= {"seed": args.seed, "grammar": None, "json_schema": None}
    AnswerOptions(**settings)
    if args.grammar:
        settings["grammar"] = flags.read_text(args.grammar, "--grammar")
    if args.json_schema:
        settings["json_schema"] = flags.read_text(args.json_schema, "--json-schema")
        try:
            grammar_of(AnswerOptions(**settings))
        except HalfVError as error:
            raise HalfVError(f"{args.json_schema}: {error}") from error
    return settings | {"max_tokens": args.max_tokens}


def _check_grammar(path: str, text: str, vocab: int) -> None:
    """Its parser says what is wrong on stderr, in several lines."""
    from halfv_edge.engine.options import AnswerOptions
    from halfv_edge.engine.sampling import Sampler

    with tempfile.TemporaryFile() as said:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            Sampler(AnswerOptions(grammar=text), vocab).close()
        except HalfVError as error:
            said.seek(0)
            why = said.readline().decode("utf-8", "replace").rpartition("grammar: ")[2].strip().removesuffix(" at")
            raise HalfVError(f"{path} is not a grammar: {why or error}; it must be GBNF with a rule root.") from error
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _answer_once(session: Session, question: str, pictures: list[Picture], as_json: bool) -> int:
    chat = session.chat
    reply = session.ask(question, pictures, write=not as_json)
    if reply.error is not None:
        raise reply.error
    if reply.interrupted:
        session.out.say("halfv: interrupted.")
        return INTERRUPTED
    if as_json:
        why = answer_stats.why_whole(chat.runtime, chat.token_maps)
        print(json.dumps(answer_stats.as_json(reply.text, chat.stats, session.pictures, chat, why), indent=2))
        return 0
    session.report()
    return 0
