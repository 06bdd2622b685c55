"""``tar-vis weights``: list, get, verify, convert and split."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tar_vis_core.errors import WeightsError
from tar_vis_core.io.paths import user_path
from tar_vis_core.weights.manifest import cache_folder, find_weights, manifest


def list_weights() -> None:
    """Print name, preset, licence and state of all known weights."""
    for entry in manifest():
        by_hand = '' if entry.path else ', by hand only'
        print(f'{entry.name:30} {entry.preset or "(backbone)":22} {entry.licence:18} {entry.state}{by_hand}')
    print(f"fetched files lie in {cache_folder()}; 'tar-vis weights get NAME' fetches one or says where it is")


def get(name: str, to: Path | None, accept_licence: bool, convert: bool) -> None:
    """Fetch a file whose licence the user has seen."""
    entry = find_weights(name)
    if entry.file:
        print(f'{entry.name} comes with the package: {entry.path}')
        return
    if not entry.url:
        raise WeightsError(f'{entry.name} has no direct link; fetch it by hand ({entry.source}), then '
                           "'tar-vis weights convert FILE -o OUT'")
    print(f'{entry.name}: {entry.source}\nlicence: {entry.licence}' + (
        ' (no commercial use)' if entry.non_commercial else ''))
    accepted = accept_licence or not entry.non_commercial or (
        sys.stdin.isatty() and input('Do you accept this licence? [yes/no] ').strip().lower() == 'yes')
    if not accepted:
        raise WeightsError(f'{entry.name} is licensed {entry.licence}; give --accept-licence to accept that')
    from tar_vis_core.weights.download import download

    path = (to or cache_folder()) / entry.path.name
    if path.exists():
        print(f'{path} is there already')
    else:
        digest = download(entry.url, path, entry.sha256)
        known = 'as expected' if entry.sha256 else 'nobody has published one to compare with'
        print(f'{path}: {path.stat().st_size} bytes, sha256 {digest} ({known})')
    out = path.with_suffix('.safetensors')
    if convert:
        convert_weights(path, out, entry.preset or None, entry.class_set or None)
    else:
        classes = f' --classes {entry.class_set}' if entry.class_set else ''
        print(f'next: tar-vis weights convert {path} -o {out}{classes}')


def verify_weights(target: str | None) -> None:
    """Check files against the manifest and against their presets."""
    from tar_vis_core.weights.verify import verify

    print('\n'.join(verify(target)))


def convert_weights(source: Path, out: Path, preset: str | None, classes: str | None) -> None:
    """Convert an official checkpoint to safetensors."""
    from tar_vis_core.weights.loading import first_names
    from tar_vis_core.weights.official import convert_official

    done = convert_official(source, out, preset, classes)
    what = f'preset {done.preset}' if done.preset else f'backbone {done.backbone}, for training to start from'
    print(f'{done.path}: {what}; {done.tensors} tensors, {done.parameters / 1e6:.1f} M numbers')
    for note in done.notes:
        print(f'  {note}')
    for reason in dict.fromkeys(reason for _, reason in done.dropped):
        names = [name for name, because in done.dropped if because == reason]
        print(f'  dropped {len(names)} ({first_names(names)}): {reason}')
    if done.preset:
        print('  it holds no Synchronizer and Routers; TAR needs an adapter')


def split(full: Path, base: Path, adapter: Path) -> None:
    """Split weights with TAR into base weights and an adapter."""
    from tar_vis_core.weights.loading import split_adapter

    split_adapter(full, base, adapter)
    print(f'{base}: {base.stat().st_size} bytes\n{adapter}: {adapter.stat().st_size} bytes')


def parser() -> argparse.ArgumentParser:
    """Return the command line after ``tar-vis weights``."""
    made = argparse.ArgumentParser(prog='tar-vis weights', description='Files of weights: known, fetched, converted.')
    actions = made.add_subparsers(required=True, metavar='ACTION')
    listing = actions.add_parser('list', help='all known weights: preset, licence, and whether they are here')
    listing.set_defaults(call=list_weights)
    getting = actions.add_parser('get', help='fetch an official file from its publisher')
    getting.add_argument('name', help="as 'tar-vis weights list' names it")
    getting.add_argument('--to', type=user_path, metavar='FOLDER',
                         help='instead of $TAR_VIS_WEIGHTS or ~/.cache/tar_vis')
    getting.add_argument('--accept-licence', action='store_true', help='you know the licence and accept it')
    getting.add_argument('--convert', action='store_true', help='convert it to safetensors beside it at once')
    getting.set_defaults(call=get)
    verifying = actions.add_parser('verify', help='check files: sha256, header, preset, names, shapes, numbers')
    verifying.add_argument('target', nargs='?', help='a file or a name (default: all known files that are here)')
    verifying.set_defaults(call=verify_weights)
    converting = actions.add_parser('convert', help='an official .pth or .pkl checkpoint to safetensors')
    converting.add_argument('source', type=user_path, metavar='FILE')
    converting.add_argument('-o', '--out', type=user_path, required=True, metavar='OUT')
    converting.add_argument('--preset', help='the expected preset (default: found by the names of the tensors)')
    converting.add_argument('--classes', metavar='SET', help='a class set, or a text file with one name a line')
    converting.set_defaults(call=convert_weights)
    splitting = actions.add_parser('split', help='weights with TAR into base weights and a small adapter')
    splitting.add_argument('full', type=user_path, metavar='FULL')
    splitting.add_argument('--base', type=user_path, required=True, help='file to write: the model without TAR')
    splitting.add_argument('--adapter', type=user_path, required=True, help='file to write: Synchronizer and Routers')
    splitting.set_defaults(call=split)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run an action and return 0. The caller prints its errors."""
    given = vars(parser().parse_args(argv))
    given.pop('call')(**given)
    return 0
