"""Mask AP on stills or videos by number of decoder layers and by routing, with controls."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tar_vis_core.data.coco import load_coco
from tar_vis_core.data.label_fields import holds_videos, read_labels
from tar_vis_core.data.ytvis import load_ytvis
from tar_vis_core.errors import DataError, TarVisError
from tar_vis_core.evaluation.decodings import Decoding, decodings_of
from tar_vis_core.evaluation.identity_measures import MATCH
from tar_vis_core.evaluation.reported import as_table as reported_table
from tar_vis_core.evaluation.results_json import categories_of, read_results, write_results
from tar_vis_core.evaluation.stills import as_table as still_table
from tar_vis_core.evaluation.stills import evaluate_routings, labelled_categories
from tar_vis_core.evaluation.track_iou import as_table as object_table
from tar_vis_core.evaluation.videos import as_figures, as_table, evaluate_videos, score_row
from tar_vis_core.flags import add_flags, chosen
from tar_vis_core.io.paths import user_path
from tar_vis_core.io.whole_files import make_folder, write_text
from tar_vis_core.models.class_sets import plain_name
from tar_vis_core.models.presets import PRESETS, STUDIED
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.options import ModelOptions, option, options_of, same_option
from tar_vis_core.runtime.device import pick_device
from tar_vis_core.segmenter import SegmenterOptions
from tar_vis_core.weights.loading import load_model
from tar_vis_core.weights.manifest import packaged_weights

OBJECT_LINES = 20       # labelled objects, at most, of which each has a line of its own in what is printed


@dataclass(frozen=True, kw_only=True)
class EvalRun(ModelOptions):
    """The choices of a command line."""

    data: Path
    preset: str = option('nano', ', '.join(PRESETS | STUDIED))
    layers: tuple[int, ...] = option((0, 1, 3, 6, 9), 'first k layers to evaluate', low=0)
    no_routing: bool = option(False, 'leave out TAR and its controls')
    short_side: int = option(0, "shorter edge of the input, pixels; 0: the preset's", low=32, high=1333, or_zero=True)
    categories: tuple[str, ...] = option(
        (), "those that count, 'voc' for the 20 VOC classes; none: person on stills, all on videos")
    max_instances: int = option(
        0, 'slots: predictions a video; 0: 10, but 20 for DVIS-DAQ, and DVIS, DVIS++ on OVIS', low=0, high=10000)
    score_threshold: float = same_option(SegmenterOptions, 'score_threshold')
    min_score: float = option(-1.0, 'score that a tube needs for identity measures; below 0: 0.5, and 0 for tracks',
                              high=1)
    zip: bool = option(False, 'write predictions zipped, as a server takes them')
    json: Path | None = None
    results: Path | None = None
    out: Path | None = None


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog='tar-vis eval', description=__doc__)
    made.add_argument('--data', type=user_path, required=True,
                      help="COCO JSON, images beside it; or YouTube-VIS JSON, frames in JPEGImages beside it")
    made.add_argument('--json', type=user_path, metavar='FILE', help='also write the figures to this file')
    made.add_argument('--results', type=user_path, metavar='FILE',
                      help='videos: evaluate this results.json (or zip) and run no model')
    made.add_argument('--out', type=user_path, metavar='FOLDER', help='videos: write the predictions of each decoding')
    add_flags(made, options_of(EvalRun))
    return made


def open_decodings(choices: EvalRun) -> tuple[VideoInstanceModel, dict[str, Decoding]]:
    """Return the model of the command line, on its device, and its decodings."""
    if choices.threads:
        torch.set_num_threads(choices.threads)
    weights = user_path(choices.weights) if choices.weights else packaged_weights(choices.preset)
    model = load_model(choices.preset, weights, user_path(choices.adapter) if choices.adapter else None)
    found = decodings_of(model, choices.layers, model.config.routing and not choices.no_routing)
    return model.to(pick_device(choices.device)), found


def evaluate_on_videos(choices: EvalRun) -> None:
    """Evaluate on the videos of a YouTube-VIS file, or its results."""
    records, categories = load_ytvis(choices.data), categories_of(choices.data)
    names = list(dict.fromkeys(choices.categories or categories.values()))
    min_score = None if choices.min_score < 0 else choices.min_score
    if unknown := set(names) - set(categories.values()):
        raise ValueError(f'--categories {", ".join(sorted(unknown))}: the data has {", ".join(categories.values())}')
    counts = Counter(track.category for record in records for track in record.tracks if not track.crowd)
    labelled = any(counts[name] for name in names)
    if not labelled and (choices.results or not choices.out):
        held = ', '.join(f'{name} ({number})' for name, number in counts.most_common(20)) or 'no object at all'
        raise DataError(f'{choices.data}: nothing of {", ".join(names) or "no category"} is labelled here, so there is '
                        f'nothing to evaluate; it has {held}. --out FOLDER writes predictions without figures')
    if choices.results:
        predictions = read_results(choices.results, records, categories)
        rows = [score_row(choices.results.name, records, predictions, [],
                          MATCH if min_score is None else min_score, names)]
    else:
        model, decodings = open_decodings(choices)
        rows = evaluate_videos(model, records, decodings, categories=names, tracker=choices.tracker,
                               short_side=choices.short_side, max_instances=choices.max_instances,
                               options=SegmenterOptions(score_threshold=choices.score_threshold), min_score=min_score)
    count = sum(len(record.tracks) for record in records)
    print(f'\n{choices.data.name}: {len(records)} videos, {count} labelled objects; percent')
    print(as_table(rows) if labelled else 'nothing is labelled: no figures')
    for row in rows if labelled else ():
        print(f'\n{row.name}\n{row.ap}\n{row.identities}')
        if len(row.objects) <= OBJECT_LINES:
            print(object_table(row.objects))
    if choices.json:
        write_text(choices.json, json.dumps([as_figures(row) for row in rows], indent=1) + '\n')
        print(f'figures: {choices.json}')
    if choices.out:
        make_folder(choices.out)
        for row in rows:
            path = choices.out / (re.sub(r'\W+', '_', row.name) + ('.zip' if choices.zip else '.json'))
            write_results(path, row.predictions, categories)
            print(f'predictions: {path}')


def evaluate_on_stills(choices: EvalRun) -> None:
    """Evaluate on the pictures of a COCO file."""
    records = load_coco(choices.data, preload=False)
    names = labelled_categories(choices.data, records, choices.categories or ('person',))
    model, decodings = open_decodings(choices)
    if not set(names) & set(map(plain_name, model.config.class_names)):
        raise ValueError(f'the model knows none of the categories to evaluate ({", ".join(names)}), only '
                         f'{", ".join(model.config.class_names)}')
    rows = evaluate_routings(model, records, decodings, choices.short_side or model.config.short_side, names,
                             choices.score_threshold)
    print(f'\n{choices.data.name}: {len(records)} images; {rows[-1].result.categories[0].name} masks, percent')
    print(still_table(rows))
    print(f'\nreported at a score of {choices.score_threshold:g}, {rows[-1].name}\n{reported_table(rows[-1].reported)}')
    if len(rows[-1].result.categories) > 1:
        for row in rows:
            print(f'\n{row.name}\n{row.result}')
    if choices.json:
        write_text(choices.json, json.dumps([asdict(row) for row in rows], indent=1) + '\n')
        print(f'figures: {choices.json}')


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate. Return the exit code, 1 after one line about the error."""
    args = parser().parse_args(argv)
    try:
        choices = chosen(args, EvalRun, data=args.data, json=args.json, results=args.results, out=args.out)
        (evaluate_on_videos if holds_videos(read_labels(choices.data)) else evaluate_on_stills)(choices)
    except (TarVisError, ValueError) as error:
        print(f'tar-vis eval: {error}', file=sys.stderr)
        return 1
    return 0
