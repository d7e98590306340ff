"""Prepare images: `fastdiff data pack FOLDER OUT` resizes and cuts a folder's images into one .npz or .npy.

Each image is turned upright, resized until its smaller side is --image-size and cut to its middle square, as OpenAI's
loader does. 16 bits become 8, alpha is dropped, grey images stay grey where all are. The folders of the first level are
the classes, kept in an .npz as labels.
"""


def add_arguments(parser):
    actions = parser.add_subparsers(title="actions", metavar="action", required=True)
    pack = actions.add_parser("pack", help="a folder of images into one file")
    pack.add_argument("folder", help="images in any format that Pillow reads, in any depth")
    pack.add_argument("out", help="an .npz (images and labels) or .npy (images, read from the disk while training)")
    pack.add_argument("--image-size", type=int, help="side of the squares (default: the first image's smaller side)")
    pack.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="at a broken image: stop, or skip")


def main(args):
    from ..data.pack import pack

    if args.image_size is not None and args.image_size < 1:
        raise ValueError(f"image_size must be positive, got {args.image_size}")
    found = pack(args.folder, args.out, args.image_size, args.on_error)
    classes = f" of {len(found.classes)} classes" if found.classes else ""
    N, C, S, _ = found.images.shape
    print(f"{N} images {S}x{S}x{C}{classes}: {args.out}")
    return 0
