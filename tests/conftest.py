"""Shared by the tests: a small Emoji-COCO, and commands run as a user runs them."""
import subprocess, sys
from pathlib import Path
import pytest
from mimdet.emoji import EmojiConfig, make_dataset

ROOT = Path(__file__).resolve().parent.parent

def run_command(name, *arguments, **kwargs):
    "A console command in a process of its own; its output as text."
    return subprocess.run([Path(sys.executable).with_name(name), *map(str, arguments)], capture_output=True, text=True, **kwargs)

@pytest.fixture(scope='session')
def emoji(tmp_path_factory):
    "Emoji-COCO of three categories: 16 images to train on, 6 to evaluate on; `{split: {json, images, ...}}`."
    return make_dataset(tmp_path_factory.mktemp('data')/'emoji', EmojiConfig(categories=3, seed=5), train=16, val=6)

def spec(split): return f'{split["json"]}:{split["images"]}'

SHORT = ['schedule.warmup=0', 'train.log_period=1', 'train.eval_period=0', 'data.workers=0', 'data.batch=2']

@pytest.fixture(scope='session')
def trained(emoji, tmp_path_factory):
    "Output folder of a training of three steps."
    out = tmp_path_factory.mktemp('run')/'trained'
    done = run_command('mimdet_train', 'schedule.iterations=3', *SHORT, '--dataset', spec(emoji['train']), '--output', out)
    assert done.returncode == 0, done.stderr
    return out
