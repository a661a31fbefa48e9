"""Shared by the tests: a small Emoji-COCO, and commands run as a user runs them."""
import json, os, shutil, subprocess, sys
from pathlib import Path
from typing import NamedTuple
import pytest
from mimdet.base.core import say_once
from mimdet.data.emoji import EmojiConfig, make_dataset

ROOT = Path(__file__).resolve().parent.parent
SHORT = ['schedule.warmup=0', 'train.log_period=1', 'train.eval_period=0', 'data.workers=0', 'data.batch=2']

WARM = os.environ.get('MIMDET_WARM', '') # folder of warm commands, which `make test` has: see tools/warm.py

def program(name, warm=True):
    "The file of a console command, a warm one if there is one."
    folders = [WARM, str(Path(sys.executable).parent)][not warm:]
    return shutil.which(name, path=os.pathsep.join(folders))

def run_command(name, *arguments, warm=True, **kwargs):
    "A console command in a process of its own; its output as text."
    return subprocess.run([program(name, warm), *map(str, arguments)], capture_output=True, text=True, **kwargs)

def pytest_collection_modifyitems(items):
    "Files that take longest begin first, so that no worker is left alone with one at the end."
    longest = ['test_reproduce.py', 'test_coco_study.py']
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))

def spec(split): return f'{split["json"]}:{split["images"]}'

def logged(out):
    "Iterations that a training has logged so far; its last line may be half written."
    path = out/'metrics.jsonl'
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)['iteration'] for line in lines if line.endswith('}')]

def copy_project(folder):
    "What a study needs of the project, without its git."
    def copy(names, *left_out):
        for name in names: shutil.copytree(ROOT/name, folder/name, ignore=shutil.ignore_patterns(*left_out))
    copy(('nbs', 'mimdet', 'profiles', 'tools'), '.ipynb_checkpoints')
    copy(('results', 'figures', 'weights'), 'smoke', '*.png', '*.svg')
    for name in ('Snakefile', 'settings.ini', 'README.md', 'LICENSE'): shutil.copy(ROOT/name, folder/name)
    return folder

class Done(NamedTuple):
    "How a command ended."
    returncode: int
    stdout: str
    stderr: str

@pytest.fixture
def call(capfd):
    "Runs a command's function in this process, which saves the seconds that importing torch takes."
    def run(command, *arguments):
        capfd.readouterr()
        try: code = command(list(map(str, arguments))) or 0
        except SystemExit as e: code = e.code
        return Done(code, *capfd.readouterr())
    return run

@pytest.fixture(scope='session')
def emoji(tmp_path_factory):
    "Emoji-COCO of three categories: 16 images to train on, 6 to evaluate on; `{split: {json, images, ...}}`."
    return make_dataset(tmp_path_factory.mktemp('data')/'emoji', EmojiConfig(categories=3, seed=5), train=16, val=6)

@pytest.fixture(scope='session')
def trained(emoji, tmp_path_factory):
    "Output folder of a training of three steps."
    out = tmp_path_factory.mktemp('run')/'trained'
    options = ['schedule.iterations=3', *SHORT, '--dataset', spec(emoji['train']), '--output', out]
    done = run_command('mimdet_train', *options)
    assert done.returncode == 0, done.stderr
    return out

@pytest.fixture(autouse=True)
def says_everything_again():
    "What is said once in a process is said in each test."
    say_once.cache_clear()
