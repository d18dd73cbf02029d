"""A llama-cpp-python program with HalfV: only the import and the chat handler differ from one without.

python examples/handler.py MODEL.gguf MMPROJ.gguf PICTURE "What is this?" ["And what is that?" ...]
"""

import sys
from pathlib import Path

from halfv_edge.handler.handler import ChatError, HalfVChatHandler  # before llama_cpp, which then finds our libraries

from llama_cpp import Llama  # isort: skip


def main(model_path: str, mmproj_path: str, picture: str, questions: list[str]) -> None:
    handler = HalfVChatHandler(clip_model_path=mmproj_path, verbose=False)
    llm = Llama(model_path=model_path, chat_handler=handler, n_ctx=4096, verbose=False)
    messages = []
    for number, question in enumerate(questions):
        content = [{"type": "text", "text": question}]
        if number == 0:
            content.insert(0, {"type": "image_url", "image_url": {"url": Path(picture).resolve().as_uri()}})
        messages.append({"role": "user", "content": content})
        answer = ""
        for chunk in llm.create_chat_completion(messages, max_tokens=200, temperature=0.2, stream=True):
            piece = chunk["choices"][0]["delta"].get("content") or ""
            print(piece, end="", flush=True)
            answer += piece
        print()
        messages.append({"role": "assistant", "content": answer})
        print(f"encoded {handler.stats.n_encoded}, evaluated {handler.stats.n_prompt} tokens", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:4], sys.argv[4:])
    except ChatError as error:
        sys.exit(str(error))
