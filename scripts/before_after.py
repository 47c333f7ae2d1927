"""Put two pictures side by side: python scripts/before_after.py BEFORE AFTER OUT"""

import sys

from PIL import Image

from diffdeid import read_image, write_image


def main(before: str, after: str, out: str) -> None:
    left, right = read_image(before).image, read_image(after).image
    sheet = Image.new("RGB", (left.width + right.width, left.height))
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width, 0))
    write_image(out, sheet, overwrite=True)
    print(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
