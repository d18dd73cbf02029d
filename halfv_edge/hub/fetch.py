"""Pictures from the network, for those surfaces whose users name them by URL. The engine itself fetches nothing."""

from __future__ import annotations

import urllib.error
import urllib.request

from halfv_edge.errors import HalfVError

MAX_URL_BYTES = 64 << 20
URL_TIMEOUT_SEC = 20


def is_url(text: str) -> bool:
    """Whether `fetch` is for it."""
    return text[:8].lower().startswith(("http://", "https://"))


def fetch(url: str) -> bytes:
    """What is at an http(s) URL; whatever is wrong with it is one sentence."""
    request = urllib.request.Request(url, headers={"User-Agent": "halfv-edge"})
    try:
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT_SEC) as answer:
            raw: bytes = answer.read(MAX_URL_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise HalfVError(f"{url} cannot be fetched: the server says {error.code} {error.reason}.") from error
    except (OSError, ValueError) as error:  # URLError and time-outs are OSErrors
        reason = getattr(error, "reason", None) or error
        raise HalfVError(f"{url} cannot be fetched: {reason}; download it and give the file.") from error
    except Exception as error:  # http.client raises its own kinds for broken answers
        raise HalfVError(f"{url} cannot be fetched: {error!r}; download it and give the file.") from error
    if len(raw) > MAX_URL_BYTES:
        raise HalfVError(f"{url} is larger than {MAX_URL_BYTES >> 20} MB: download it and make it smaller.")
    return raw
