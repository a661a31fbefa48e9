"""Tell where the tables and figures of a profile are, and print its main table: `python tools/show.py quick`."""
import sys
from pathlib import Path

folder = Path(__file__).resolve().parent.parent/'figures'/sys.argv[1]
made = sorted(p.name for p in folder.glob('*') if p.is_file())
if not made: sys.exit(f'no tables or figures in {folder} yet')
table = folder/'table_ratio.md'
if table.exists(): print('\n' + table.read_text())
print(f'Tables and figures: {folder}\n  ' + '\n  '.join(made))
