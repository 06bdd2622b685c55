"""Mask AP on stills or videos by number of decoder layers and by routing, with controls."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from tar_vis_core.data.coco import load_coco
from tar_vis_core.data.label_fields import holds_videos, read_labels
from tar_vis_core.data.ytvis import load_ytvis
from tar_vis_core.errors import DataError, TarVisError
from tar_vis_core.evaluation.decodings import Decoding, decodings_of
from tar_vis_core.evaluation.identity_measures import MATCH
from tar_vis_core.evaluation.results_json import categories_of, read_results, write_results
from tar_vis_core.evaluation.stills import as_table as still_table
from tar_vis_core.evaluation.stills import evaluate_routings, labelled_categories
from tar_vis_core.evaluation.track_iou import as_table as object_table
from tar_vis_core.evaluation.videos import as_figures, as_table, evaluate_videos, score_row
from tar_vis_core.io.paths import user_path
from tar_vis_core.io.whole_files import write_text
from tar_vis_core.models.class_sets import plain_name
from tar_vis_core.models.presets import TRACKERS
from tar_vis_core.models.video_model import VideoInstanceModel
from tar_vis_core.runtime.device import pick_device
from tar_vis_core.segmenter import SegmenterOptions
from tar_vis_core.weights.loading import load_model
from tar_vis_core.weights.manifest import packaged_weights

OBJECT_LINES = 20       # labelled objects, at most, of which each has a line of its own in what is printed


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog='tar-vis eval', description=__doc__)
    made.add_argument('--data', type=user_path, required=True,
                      help="COCO JSON, images beside it; or YouTube-VIS JSON, frames in JPEGImages beside it")
    made.add_argument('--preset', default='nano')
    made.add_argument('--weights', type=user_path, help="safetensors file; the preset's packaged weights by default")
    made.add_argument('--adapter', type=user_path, help='safetensors file with TAR for weights without it')
    made.add_argument('--device', default='auto', help='auto, cpu or cuda:N')
    made.add_argument('--layers', type=int, nargs='*', default=[0, 1, 3, 6, 9], help='first k layers to evaluate')
    made.add_argument('--no-routing', action='store_true', help='leave out TAR and its controls')
    made.add_argument('--short-side', type=int, default=0, help="input size; 0 for the preset's")
    made.add_argument('--categories', nargs='+', help="stills: person by default, 'voc' for the 20 VOC classes; "
                                                      'videos: all by default')
    made.add_argument('--json', type=user_path, help='write the figures here, too')
    group = made.add_argument_group('videos')
    group.add_argument('--tubes', default='auto', help="slots (whole videos), tracks (the segmenter's); auto: by model")
    group.add_argument('--tracker', default='auto', help=f"auto (the model's own), {', '.join(TRACKERS)}")
    group.add_argument('--max-instances', type=int, default=0,
                       help='slots: predictions a video (default: 10; 20 for DVIS-DAQ, and DVIS, DVIS++ on OVIS)')
    group.add_argument('--score-threshold', type=float, default=SegmenterOptions.score_threshold,
                       help='tracks: score that a new track needs')
    group.add_argument('--min-score', type=float,
                       help='score that a tube needs for identity measures (default: 0.5; 0 for tracks)')
    group.add_argument('--results', type=user_path, help='evaluate this results.json (or zip) and run no model')
    group.add_argument('--out', type=user_path, help='write the predictions of each decoding to this folder')
    group.add_argument('--zip', action='store_true', help='zipped, as a server takes them')
    return made


def open_decodings(args: argparse.Namespace) -> tuple[VideoInstanceModel, dict[str, Decoding]]:
    """Return the model of the command line, on its device, and its decodings."""
    model = load_model(args.preset, args.weights or packaged_weights(args.preset), args.adapter)
    found = decodings_of(model, args.layers, model.config.routing and not args.no_routing)
    return model.to(pick_device(args.device)), found


def evaluate_on_videos(args: argparse.Namespace) -> None:
    """Evaluate on the videos of a YouTube-VIS file, or its results."""
    records, categories = load_ytvis(args.data), categories_of(args.data)
    names = list(dict.fromkeys(args.categories or categories.values()))
    if unknown := set(names) - set(categories.values()):
        raise ValueError(f'--categories {", ".join(sorted(unknown))}: the data has {", ".join(categories.values())}')
    counts = Counter(track.category for record in records for track in record.tracks if not track.crowd)
    labelled = any(counts[name] for name in names)
    if not labelled and (args.results or not args.out):
        held = ', '.join(f'{name} ({number})' for name, number in counts.most_common(20)) or 'no object at all'
        raise DataError(f'{args.data}: nothing of {", ".join(names) or "no category"} is labelled here, so there is '
                        f'nothing to find; it has {held}. --out FOLDER writes predictions without figures')
    if args.results:
        predictions = read_results(args.results, records, categories)
        rows = [score_row(args.results.name, records, predictions, [],
                          MATCH if args.min_score is None else args.min_score, names)]
    else:
        model, decodings = open_decodings(args)
        rows = evaluate_videos(model, records, decodings, args.tubes, categories=names, tracker=args.tracker,
                               short_side=args.short_side, max_instances=args.max_instances,
                               options=SegmenterOptions(score_threshold=args.score_threshold), min_score=args.min_score)
    print(f'\n{args.data.name}: {len(records)} videos, {sum(len(r.tracks) for r in records)} labelled objects; percent')
    print(as_table(rows) if labelled else 'nothing is labelled: no figures')
    for row in rows if labelled else ():
        print(f'\n{row.name}\n{row.ap}\n{row.identities}')
        if len(row.objects) <= OBJECT_LINES:
            print(object_table(row.objects))
    if args.json:
        write_text(args.json, json.dumps([as_figures(row) for row in rows], indent=1) + '\n')
        print(f'figures: {args.json}')
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        for row in rows:
            path = args.out / (re.sub(r'\W+', '_', row.name) + ('.zip' if args.zip else '.json'))
            write_results(path, row.predictions, categories)
            print(f'predictions: {path}')


def evaluate_on_stills(args: argparse.Namespace) -> None:
    """Evaluate on the pictures of a COCO file."""
    records = load_coco(args.data, preload=False)
    names = labelled_categories(args.data, records, args.categories or ['person'])
    model, decodings = open_decodings(args)
    if not set(names) & set(map(plain_name, model.config.class_names)):
        raise ValueError(f'the model knows none of the categories to evaluate ({", ".join(names)}), only '
                         f'{", ".join(model.config.class_names)}')
    rows = evaluate_routings(model, records, decodings, args.short_side or model.config.short_side, names)
    print(f'\n{args.data.name}: {len(records)} images; {rows[-1].result.categories[0].name} masks, percent')
    print(still_table(rows))
    if len(rows[-1].result.categories) > 1:
        for row in rows:
            print(f'\n{row.name}\n{row.result}')
    if args.json:
        write_text(args.json, json.dumps([asdict(row) for row in rows], indent=1) + '\n')
        print(f'figures: {args.json}')


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate. Return the exit code, 1 after one line about the error."""
    args = parser().parse_args(argv)
    try:
        (evaluate_on_videos if holds_videos(read_labels(args.data)) else evaluate_on_stills)(args)
    except (TarVisError, ValueError) as error:
        print(f'tar-vis eval: {error}', file=sys.stderr)
        return 1
    return 0
