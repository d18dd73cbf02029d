"""One question about one picture.

python examples/ask.py MODEL.gguf PICTURE "What is this?"
"""

import sys

from halfv_edge import HalfVError, Model


def main(model_path: str, picture: str, question: str) -> None:
    with Model.load(model_path) as model, model.chat() as chat:
        for piece in chat.ask(question, [picture], max_tokens=200):
            print(piece, end="", flush=True)
        print()
        stats = chat.stats
        print(
            f"visual tokens {stats.n_visual} -> {stats.n_kept}, first token after {stats.ttft_sec:.2f} s",
            file=sys.stderr,
        )


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except HalfVError as error:
        sys.exit(str(error))
