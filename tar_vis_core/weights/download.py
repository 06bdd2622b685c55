"""Fetch a published file, with resume. Only ``tar-vis weights get`` calls this module."""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from tar_vis_core.errors import WeightsError
from tar_vis_core.weights.manifest import sha256_of

TRIES = 4
PAUSE_S = 1.0     # before the second try; doubles from then on
TIMEOUT_S = 30.0  # without a byte


def download(url: str, path: Path, sha256: str | None = None) -> str:
    """Fetch ``url`` to ``path``. Return the file's SHA-256, which must be ``sha256`` if that is known.

    A transfer that was cut continues at the end of ``path.part``, also in a later call. Raise :class:`WeightsError`
    that says where to put the file by hand.
    """
    part = path.with_name(f'{path.name}.part')
    by_hand = f'or fetch it by hand and put it at {path}'
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f'cannot make {path.parent}: {error.strerror}') from error
    for attempt in range(TRIES):
        try:
            _fetch(url, part)
            break
        except urllib.error.HTTPError as error:
            if error.code not in (408, 429) and error.code < 500:
                raise WeightsError(f'{url}: the server says {error.code} {error.reason}; look for a new link, '
                                   f'{by_hand}') from error
            failure: Exception = error
        except (OSError, http.client.HTTPException) as error:
            failure = error
        if attempt < TRIES - 1:
            time.sleep(PAUSE_S * 2 ** attempt)
    else:
        reason = getattr(failure, 'reason', None) or failure
        raise WeightsError(f'{url} could not be fetched in {TRIES} tries ({reason}); try again later, {by_hand}')
    digest = sha256_of(part)
    if sha256 is not None and digest != sha256:
        part.unlink()
        raise WeightsError(f'{url}: what came has sha256 {digest}, expected {sha256}; it was deleted')
    os.replace(part, path)
    return digest


def _fetch(url: str, part: Path) -> None:
    """Append to ``part`` what it lacks. Raise OSError or HTTPException if the transfer fails."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={'User-Agent': 'tar-vis'})
    if have:
        request.add_header('Range', f'bytes={have}-')
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get('Content-Range') != f'bytes */{have}':   # else nothing is lacking
            part.unlink()   # of another file than the one that is there now
            _fetch(url, part)
        return
    with response:
        if response.status != 206 or not response.headers.get('Content-Range', '').startswith(f'bytes {have}-'):
            have = 0   # the server gives all of it again
        length = response.headers.get('Content-Length')
        total = None if length is None else have + int(length)
        with part.open('ab' if have else 'wb') as file, \
                tqdm(total=total, initial=have, unit='B', unit_scale=True, desc=part.stem) as progress:
            while block := response.read(1 << 20):
                file.write(block)
                progress.update(len(block))
    if total is not None and part.stat().st_size != total:
        raise ConnectionError('the connection ended early')
