"""Write synthetic CT cases with labels: scripts/make_phantoms.py --out DIR --count N --seed S [--spacing x,y,z]."""

import argparse

from ctsam3d.data.phantoms import REGIONS_MM, make_phantom_cases


def _spacing(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write synthetic CT cases as DIR/phantom_<seed>.")
    parser.add_argument("--out", required=True, help="folder that receives the case folders")
    parser.add_argument("--count", type=int, required=True, help="how many cases")
    parser.add_argument("--seed", type=int, required=True, help="seed of the first case; the others follow")
    parser.add_argument("--spacing", type=_spacing, default=(1.5, 1.5, 1.5), help="voxel size in mm: x,y,z")
    parser.add_argument("--region", choices=sorted(REGIONS_MM), default="trunk", help="part of the body")
    parser.add_argument("--rich", action="store_true", help="with masses, vessels, implants, scanners of all kinds")
    args = parser.parse_args()
    for case in make_phantom_cases(args.out, args.count, args.seed, args.spacing, args.region, args.rich):
        print(case)
