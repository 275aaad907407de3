"""Break things on purpose and check what mmpatch promises: processes, files, data, long runs.

python tools/check_reliability.py                       # all parts, in under 20 minutes
python tools/check_reliability.py faults inputs --long  # these parts, more often
python tools/check_reliability.py --long --out docs/reliability.json --write docs/reliability.md

Every part runs real processes on generated data. Progress goes to stderr, one table to stdout; the
exit status is 1 if a promise was broken.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path

from reliability.report import make_table, to_dict

from mmpatch.engine.errors import report_errors

#: Modules of ``tools/reliability``. Each has ``check(folder, is_long)``, which yields rows.
PARTS = ['processes', 'faults', 'inputs', 'numerics', 'load']
MARKS = '<!-- rows: start -->', '<!-- rows: end -->'


@report_errors()
def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument('parts', nargs='*', metavar='PART', help=f'of {", ".join(PARTS)}')
    arguments.add_argument('--long', action='store_true', help='try everything more often')
    arguments.add_argument(
        '--out', type=Path, metavar='JSON', help='file whose rows of the same parts are replaced'
    )
    arguments.add_argument(
        '--write', type=Path, metavar='PAGE', help='replace the table of a page, between its marks'
    )
    args = arguments.parse_args()
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        arguments.error(f'{unknown[0]} is no part; choose from {", ".join(PARTS)}')
    rows, form = [], 'long' if args.long else 'short'
    for part in args.parts or PARTS:
        with tempfile.TemporaryDirectory(prefix=f'reliability-{part}-') as folder:
            start = time.perf_counter()
            module = importlib.import_module(f'reliability.{part}')
            for row in module.check(Path(folder), args.long):
                end = time.perf_counter()
                rows.append(to_dict(part, form, row, end - start))
                print(f'{part}: {row.fault}: {row.held} of {row.tried}', file=sys.stderr)
                start = end
    print(make_table(rows))
    found = json.loads(args.out.read_text()) if args.out and args.out.exists() else []
    parts = {row['part'] for row in rows}
    found = sorted(
        [row for row in found if row['part'] not in parts] + rows,
        key=lambda row: PARTS.index(row['part']),
    )
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + '\n')
    if args.write:
        before, _, rest = args.write.read_text().partition(MARKS[0])
        table = '\n\n'.join((MARKS[0], make_table(found), MARKS[1]))
        args.write.write_text(before + table + rest.partition(MARKS[1])[2])
    broken = [row['promise'] for row in rows if row['held'] < row['tried']]
    sys.exit(f'error: broken: {"; ".join(broken)}' if broken else 0)


if __name__ == '__main__':
    main()
