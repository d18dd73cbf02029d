"""What HalfVChatHandler takes: pictures from anywhere, prompt formats of any kind, and mistakes."""

from __future__ import annotations

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from halfv_cpp import library
from llama_cpp.llama_chat_format import Llava15ChatHandler

from halfv_edge.handler.handler import ChatError, HalfVChatHandler
from tests.support.llama_chat import Chat, Place, assistant, closing, data_uri, png, user

STRING_TEMPLATE = "{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}answer:"
QUESTION = "what is in the picture"
FIRST = [user(QUESTION, data_uri(0))]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("llava"), "llava")


@pytest.fixture
def llava(files: Place) -> Iterator[Place]:
    yield from closing(files)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The URL of a folder that has a.png."""
    (tmp_path / "a.png").write_bytes(png(0))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


#
# pictures
#


def test_every_kind_of_url(llava: Place, served: str, tmp_path: Path) -> None:
    wanted = llava.ours().text(FIRST)
    named = tmp_path / "a picture.png"
    named.write_bytes(png(0))
    for url in (f"{served}/a.png", named.as_uri(), data_uri(0).replace("image/png", "application/octet-stream")):
        chat = llava.ours()
        assert chat.text([user(QUESTION, url)]) == wanted
        assert chat.text([user(QUESTION, url)]) == wanted
        assert (chat.stats.n_encoded, chat.stats.n_prompt) == (0, 1)
    message = {"role": "user", "content": [{"type": "image_url", "image_url": data_uri(0)}, FIRST[0]["content"][1]]}
    assert llava.ours().text([message]) == wanted


def test_a_url_may_come_to_show_something_else(llava: Place, served: str, tmp_path: Path) -> None:
    chat = llava.ours()
    chat([user(QUESTION, f"{served}/a.png")])
    (tmp_path / "a.png").write_bytes(png(1))
    assert chat.text([user(QUESTION, f"{served}/a.png")]) == llava.ours().text([user(QUESTION, data_uri(1))])
    assert chat.stats.n_encoded == 1


def test_url_of_a_picture_that_is_held(llava: Place, served: str) -> None:
    """Fetched again, but not encoded, though no cache remembers it."""
    chat = llava.ours(image_cache_mb=0)
    messages = [user(QUESTION, f"{served}/a.png")]
    chat(messages)
    chat([*messages, assistant("a red cat"), user("where")])
    assert chat.stats.n_encoded == 0
    assert chat.stats.n_prompt < 100


def test_load_image_may_be_overridden(llava: Place) -> None:
    asked = []

    class Vault(HalfVChatHandler):
        def load_image(self, image_url: str) -> bytes:
            asked.append(image_url)
            return png(0)

    handler = Vault(str(llava.mmproj), verbose=False)
    chat = Chat(llava.llama(handler), handler)
    assert chat.text([user(QUESTION, "vault:7")]) == llava.ours().text(FIRST)
    for _ in range(2):
        chat([user(QUESTION, "vault:7", "data:vault,8")])
    assert asked == ["vault:7", "vault:7", "data:vault,8", "vault:7"]  # a data: URI cannot come to be another picture


def test_order_of_pictures(llava: Place) -> None:
    one, two = data_uri(0), data_uri(1)
    chat = llava.ours(profile="off")
    forth, back = (chat.text([user(QUESTION, *urls)]) for urls in ((one, two), (two, one)))
    assert forth != back
    assert chat.stats.n_encoded == 0
    upstream = llava.upstream(path=llava.whole)
    assert [forth, back] == [upstream.text([user(QUESTION, *urls)]) for urls in ((one, two), (two, one))]


def test_text_that_looks_like_a_picture(llava: Place) -> None:
    """llama_cpp's own marker in a text is text, and so is the URL of a picture that is there."""
    chat = llava.ours(n_ctx=4096)
    url = data_uri(0)
    chat([user(f"<__media__> {url}", url)])
    assert chat.stats.n_visual == 100
    assert chat.stats.n_prompt > len(url) // 8


def test_picture_in_a_tool_message(llava: Place) -> None:
    chat = llava.ours()
    chat([user("look"), {**user("here", data_uri(0)), "role": "tool"}])
    assert chat.stats.n_visual == 100


#
# formats
#


@pytest.mark.parametrize("template", [STRING_TEMPLATE, None], ids=["text only", "none"])
def test_templates_that_take_no_parts(template: str | None, llava: Place) -> None:
    chat = llava.ours(llava.model("string", template))
    assert chat.text([user(QUESTION, data_uri(0))])
    assert chat.stats.n_visual == 100


def test_template_that_leaves_the_picture_out(llava: Place) -> None:
    chat = llava.ours(llava.model("blind", "{% for m in messages %}{{ m.role }}{% endfor %}"))
    with pytest.raises(ChatError, match="leaves out 1 of 1 pictures"):
        chat(FIRST)


def test_prompt_format_of_another_handler_in_a_subclass(llava: Place) -> None:
    class Mine(Llava15ChatHandler):
        DEFAULT_SYSTEM_MESSAGE = "yes and no"

    assert llava.ours(like=Mine, profile="off").text(FIRST) == llava.upstream(Mine, llava.whole).text(FIRST)


#
# mistakes
#


MISTAKES = {
    "not a URL": ("cat.png", "image_url = 'cat.png' is not a URL"),
    "no file": ("file:///nowhere/cat.png", "/nowhere/cat.png does not exist"),
    "no base64": ("data:image/png;base64,%", "is not valid base64"),
    "not a picture": ("data:image/png;base64,aGVsbG8=", "is not an image"),
    "nobody there": ("http://127.0.0.1:9/cat.png", "cannot be fetched"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_picture(mistake: str, llava: Place) -> None:
    url, said = MISTAKES[mistake]
    chat = llava.ours()
    wanted = chat.text(FIRST)
    with pytest.raises(ValueError, match=re.escape(said)):
        chat([*FIRST, user(QUESTION, url)])
    assert chat.text(FIRST) == wanted


def test_image_url_without_a_url(llava: Place) -> None:
    with pytest.raises(ChatError, match="must be a URL or an object with a url"):
        llava.ours()([{"role": "user", "content": [{"type": "image_url", "image_url": {"uri": "x"}}]}])


def test_tool_that_is_not_there(llava: Place) -> None:
    with pytest.raises(ValueError, match="Tool choice 'fly' not found"):
        llava.ours()(FIRST, tools=[], tool_choice={"type": "function", "function": {"name": "fly"}})


def test_clip_model_that_is_no_encoder(llava: Place) -> None:
    with pytest.raises(ValueError, match="Clip model path does not exist: nowhere"):
        HalfVChatHandler("nowhere.gguf")
    handler = HalfVChatHandler(str(llava.whole), verbose=False)
    with pytest.raises(ChatError, match="not a vision encoder"):
        Chat(llava.llama(handler), handler)(FIRST)


def test_encoder_of_another_model(llava: Place) -> None:
    handler = HalfVChatHandler(str(llava.mmproj), verbose=False)
    wide = llava.model("wide", n_embd=128)
    with pytest.raises(ChatError, match=r"another model: it gives 64 numbers per token, wide\.gguf takes 128"):
        Chat(llava.llama(handler, wide), handler)(FIRST)


def test_keep_needs_a_profile(llava: Place) -> None:
    with pytest.raises(ChatError, match=r"keep = 0\.5 needs a profile"):
        llava.ours(llava.whole, keep=0.5)(FIRST)


def test_picture_that_must_be_one_batch(llava: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from halfv_edge.engine.encoder import Encoder

    monkeypatch.setattr(Encoder, "non_causal", True)
    chat = llava.ours(n_ubatch=64)
    with pytest.raises(ChatError, match=r"picture of 100 tokens does not fit into one batch.*n_ubatch=100"):
        chat(FIRST)


def test_from_pretrained(llava: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = types.ModuleType("huggingface_hub")
    hub.HfFileSystem = lambda: types.SimpleNamespace(ls=lambda _: ["me/model/model.gguf", "me/model/mmproj.gguf"])
    hub.hf_hub_download = lambda filename, **_: str(llava.folder / filename)
    utils = types.ModuleType("huggingface_hub.utils")
    utils.validate_repo_id = lambda _: None
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", utils)
    handler = HalfVChatHandler.from_pretrained("me/model", "*mmproj*", verbose=False, keep=0.3)
    chat = Chat(llava.llama(handler), handler)
    chat(FIRST)
    assert chat.stats.n_kept == 30


def test_llama_cpp_with_other_libraries_came_first(tmp_path: Path) -> None:
    for file in library.lib_dir().iterdir():
        (tmp_path / file.name).symlink_to(file)
    env = os.environ | {"LLAMA_CPP_LIB_PATH": str(tmp_path), "MTMD_CPP_LIB": str(tmp_path)}
    code = "import llama_cpp, halfv_edge.handler.handler"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "llama_cpp was already imported with the libraries in" in last
    assert "import halfv_edge.handler before" in last


def test_another_llama_cpp_is_refused_once_ours_is_loaded(tmp_path: Path) -> None:
    """Its libraries would take functions from ours."""
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").write_text("print('imported')")
    (tmp_path / "llama_cpp_python-9.8.7.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: 9.8.7\n"
    (tmp_path / "llama_cpp_python-9.8.7.dist-info" / "METADATA").write_text(metadata)
    code = "import sys; sys.path.insert(0, sys.argv[1]); from halfv_cpp import library as l; l.load(); import llama_cpp"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.stdout == ""
    assert done.stderr.strip().splitlines()[-1] == (
        "ImportError: llama-cpp-python 9.8.7 cannot share a process with HalfV's libraries, which are those of "
        f"{library.manifest()['llama_cpp_python']}: install that version, or use two processes."
    )
