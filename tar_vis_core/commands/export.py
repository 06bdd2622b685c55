"""Write a part of a model as a file for other runtimes, after a comparison with PyTorch at two sizes.

The image encoder is a static graph: images (1, 3, height, width), normalised and padded as the model's own, to mask
features at stride 4, three levels, and for a detector its cells and predictions. The decoder is none, for its layers
run or not, frame by frame: each layer, the heads, the Synchronizer and the Routers are files of their own. A file is
written only if ONNX Runtime, and OpenVINO where it is installed, compute what PyTorch does.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from tar_vis_core.engines.decoder_graphs import HeadsGraph, LayerGraph, RoutingGraph
from tar_vis_core.engines.encoder_engine import EngineError, check_outputs
from tar_vis_core.engines.encoder_graph import EncoderGraph
from tar_vis_core.engines.static_graph import StaticGraph
from tar_vis_core.errors import TarVisError
from tar_vis_core.io.paths import user_path
from tar_vis_core.io.whole_files import write_bytes
from tar_vis_core.models.video_model import SIZE_DIVISIBILITY, VideoInstanceModel, input_size
from tar_vis_core.runtime.onnx_sessions import need
from tar_vis_core.weights.loading import load_model
from tar_vis_core.weights.manifest import packaged_weights

LARGEST_GAP = 1e-4      # of the outputs, as a share of their range


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog='tar-vis export', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument('preset', help='the model, as nano')
    made.add_argument('--weights', type=user_path, help="safetensors file (default: the preset's packaged weights)")
    made.add_argument('--adapter', type=user_path, help='Synchronizer and Routers for weights without them')
    made.add_argument('--part', choices=['encoder', 'decoder_layer', 'heads', 'synchronizer', 'routers'],
                      default='encoder', help='what to write (default: encoder)')
    made.add_argument('--layer', type=int, default=0, metavar='N', help='which decoder_layer (default: 0)')
    made.add_argument('--to', choices=['onnx'], default='onnx', help='format (default: onnx)')
    made.add_argument('--size', default='640x480', metavar='WxH', help='size of the source image (default: 640x480)')
    made.add_argument('--short-side', type=int, default=0,
                      help="pixels of the network input's shorter edge (default: the preset's)")
    made.add_argument('--out', type=user_path, help='the file (default: PRESET_PART_WxH.onnx)')
    return made


def padded_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return height and width of the network's input for images of a size."""
    return tuple(-(-n // SIZE_DIVISIBILITY) * SIZE_DIVISIBILITY for n in input_size(height, width, short_side))


def open_graph(model: VideoInstanceModel, part: str, layer: int) -> StaticGraph:
    """Return a part of a model as a graph. Raise TarVisError if this model has no such part."""
    if part == 'encoder':
        return EncoderGraph(model)
    if part == 'decoder_layer':
        return LayerGraph(model, layer)
    return HeadsGraph(model) if part == 'heads' else RoutingGraph(model, part)


def main(argv: Sequence[str] | None = None) -> int:
    """Export, compare, write. Raise EngineError if the runtime computes something else than PyTorch."""
    args = parser().parse_args(argv)
    asked = re.fullmatch(r'([1-9]\d{0,4})x([1-9]\d{0,4})', args.size)
    if asked is None or args.short_side < 0:
        raise ValueError(f'--size is {args.size!r} and --short-side {args.short_side}, expected WIDTHxHEIGHT such as '
                         '640x480, and pixels')
    need('onnxruntime', 'the comparison of an export', 'onnx')
    model = load_model(args.preset, args.weights or packaged_weights(args.preset), args.adapter)
    graph = open_graph(model, args.part, args.layer)
    width, height = int(asked[1]), int(asked[2])
    size = padded_size(width, height, args.short_side or model.config.short_side)
    # half of it, too: what a trace took for a constant would be one of both
    other = tuple(max(SIZE_DIVISIBILITY, n // 2 // SIZE_DIVISIBILITY * SIZE_DIVISIBILITY) for n in size)
    written = None
    for h, w in (size, other):
        file = graph.onnx(h, w)
        told = ', '.join(f'{name} {tuple(value.shape)}' for name, value in graph.inputs(h, w).items())
        for runtime, off in check_outputs(graph, file, h, w).items():
            print(f"{told}: {runtime} differs from PyTorch by {off:.1e} of the outputs' range")
            if not off <= LARGEST_GAP:
                raise EngineError(f'the export computes something else than PyTorch: expected at most {LARGEST_GAP:g}; '
                                  'nothing was written')
        written = file if written is None else written
    part = f'{args.part}_{args.layer}' if args.part == 'decoder_layer' else args.part
    out = args.out or Path(f'{args.preset}_{part}_{size[1]}x{size[0]}.onnx')
    if not out.parent.is_dir():
        raise TarVisError(f'{out.parent} is no folder; create it first')
    write_bytes(out, written)
    print(f'{out}: {len(written) / 1e6:.1f} MB, outputs {", ".join(graph.outputs)}')
    return 0
