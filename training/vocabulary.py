"""The tokens of the demo model: words of its questions, bytes for all else. A twin of llama.cpp's "llama-bpe".

A piece of text that is a whole entry of the vocabulary is one token; every other piece is spelled in bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

BOS, USER, ASSISTANT, END = "<|bos|>", "<|user|>", "<|assistant|>", "<|end|>"
# around pictures, as the runtime names them for this kind of encoder
IMAGE, IMAGE_END = "<start_of_image>", "<end_of_image>"
SPECIALS = (BOS, USER, ASSISTANT, END, IMAGE, IMAGE_END)
WORDS_FILE = Path(__file__).with_name("words.txt")

# as llama.cpp splits text, with Python's classes for its letters and digits
PIECES = re.compile(
    r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
    r"|(?:[^\r\n\w]|_)?[^\W\d_]+|\d{1,3}| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{% for m in messages if m.role != 'system' %}"
    "{{ ('<|user|>' if m.role == 'user' else '<|assistant|>') + m.content + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def printable_bytes() -> list[str]:
    """The character that stands for each byte in vocabularies of this kind."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


PRINTABLE = printable_bytes()
FIRST_WORD = len(SPECIALS) + len(PRINTABLE)


def spelled(text: str) -> str:
    return "".join(PRINTABLE[byte] for byte in text.encode())


class Vocabulary:
    def __init__(self, words: Iterable[str]):
        self.words = list(words)
        self.tokens = [*SPECIALS, *PRINTABLE, *map(spelled, self.words)]
        self._number = {token: i for i, token in enumerate(self.tokens)}
        if len(self._number) != len(self.tokens):
            raise ValueError("a word is in the vocabulary twice, or is a single byte")
        self.bos, self.user, self.assistant, self.end, image, image_end = range(len(SPECIALS))
        self.around = [self.bos, self.user, image, image_end]  # the picture of a first turn
        self._byte = {char: byte for byte, char in enumerate(PRINTABLE)}

    @classmethod
    def read(cls, path: Path = WORDS_FILE) -> Vocabulary:
        return cls(path.read_text(encoding="utf-8").split("\n")[:-1])

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """Without the special tokens."""
        found = []
        for piece in PIECES.findall(text):
            whole = self._number.get(spelled(piece))
            found += [whole] if whole is not None else [len(SPECIALS) + byte for byte in piece.encode()]
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        chars = "".join(self.tokens[token] for token in tokens if token >= len(SPECIALS))
        return bytes(self._byte[char] for char in chars).decode(errors="replace")


def words_of_questions() -> list[str]:
    """The words of all templates with a space before them, and without one where they begin a question or answer."""
    from training import pictures
    from training.pictures.phrases import PHRASES

    inside = [word for word in pictures.template_words() if word.isalpha() and len(word) > 1]
    firsts = {text.split()[0] for group in PHRASES.values() for text in group}
    firsts |= {word[0].lower() + word[1:] for word in firsts}
    answers = {*pictures.COLOURS, *pictures.NAMED_SHAPES, "yes", "no", "left", "right", "above", "below", "up", "down"}
    bare = [word for word in sorted(firsts | answers) if word.isalpha() and len(word) > 1]
    return [*bare, *(" " + word for word in [*inside, "I", "a", "i"]), ' "', '"?', '".']


if __name__ == "__main__":
    WORDS_FILE.write_text("".join(word + "\n" for word in words_of_questions()), encoding="utf-8")
