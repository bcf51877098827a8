"""Mistakes that people really make, each with its line and exit code, by three kinds of user.

The folder of a mistake has `lift.yaml` and `heatmap.yaml` (tiny configs), `notes.txt`, `black.mp4`
(a video of five black frames), `broken.mp4`, `joints.json` and an empty folder `empty`.
"""

from __future__ import annotations

import re
import shlex

import cv2
import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("default")  # `cli.launch` sets the filters

TABLE = """
# a student who compares lifters

the words in the other order
    $ heatlift fit lift
    2: fit: is no stage; did you mean `heatlift lift fit`?
train for fit
    $ heatlift train lift
    2: train: is no stage; did you mean `heatlift lift fit`?
no subcommand
    $ heatlift lift -c lift.yaml
    2: give fit, validate, test or predict, as in `heatlift lift fit -c
a typo of a stage
    $ heatlift lfit fit
    2: lfit: no such stage or command; did you mean lift?
no config
    $ heatlift lift fit
    2: --model.net and --data.source: not given; a config gives it, as in `heatlift lift fit
      -c lift/mixste_small -c data/synthetic`
a config without its folder
    $ heatlift lift fit -c martinez
    2: martinez: no such config; did you mean lift/martinez?
a config without -c
    $ heatlift lift fit lift/mixste_small
    2: did you mean -c lift/mixste_small?
--lr
    $ heatlift lift fit -c lift.yaml --lr 0.1
    2: unknown key lr, did you mean model.optimizer.init_args.lr?
a class that is not there
    $ heatlift lift fit -c lift.yaml --model.loss pipeline.lift.losses.MPJPE
    2: model.loss: pipeline.lift.losses has no class MPJPE; did you mean
      pipeline.lift.losses.MPJPELoss?
a folder of motion capture that is not there
    $ heatlift lift fit -c lift/martinez -c data/mocap --data.source.init_args.root nowhere
      --data.source.init_args.splits splits.csv --data.detections exact
    4: nowhere: no such folder of motion capture; check root
--epochs
    $ heatlift lift fit -c lift.yaml --epochs 3
    2: unknown key epochs, did you mean trainer.max_epochs?
--batch_size
    $ heatlift lift fit -c lift.yaml --batch_size 3
    2: unknown key batch_size, did you mean data.batch_size?
--seed
    $ heatlift lift fit -c lift.yaml --seed 3
    2: unknown key seed, did you mean seed_everything?
--resume
    $ heatlift lift fit -c lift.yaml --resume true
    2: unknown key resume; the same command resumes its own unfinished run
--output
    $ heatlift lift fit -c lift.yaml --output x
    2: unknown key output, did you mean runs?
--root
    $ heatlift lift fit -c lift.yaml --data.root x
    2: unknown key data.root, did you mean data.source.init_args.root?
a network as a model
    $ heatlift lift fit -c lift.yaml --model mixste
    2: model: mixste is no class and no config; did you mean -c
a typo of a network
    $ heatlift lift fit -c lift.yaml --model.net MixST
    2: MixST is no class; did you mean pipeline.lift.MixSTE?
a loss by its short name
    $ heatlift lift fit -c lift.yaml --model.loss mse
    2: mse is no class; name it with its module, such as
heads that do not divide dim
    $ heatlift lift fit -c lift.yaml --model.net.init_args.heads 7
    2: dim 16 is not a multiple of 7 heads; correct this
an empty batch
    $ heatlift lift fit -c lift.yaml --data.batch_size 0
    2: batch_size is 0
no epochs
    $ heatlift lift fit -c lift.yaml --trainer.max_epochs 0
    2: not a single step was trained; check --trainer.max_epo
a typo of an option
    $ heatlift lift fit -c lift.yaml --data.batch_sise 1
    2: did you mean data.batch_size?
photographs for a lifter
    $ heatlift lift fit -c lift.yaml -c data/coco
    2: pipeline.datasets.Coco gives images of people with labelled joints, this needs motion
      of people in 3D; use -c data/human36m,
motion for a 2D stage
    $ heatlift heatmap fit -c heatmap.yaml -c data/human36m
    2: Human36M gives motion of people in 3D, this needs images of people with labelled
      joints; use -c data/coco,
no folder of recordings
    $ heatlift lift fit -c lift.yaml -c data/mocap
    4: mocap: no folder is given; give --data.source.init_args.root FOLDER
no detections yet
    $ heatlift lift fit -c lift.yaml --data.detections newest
    2: train one first (`heatlift heatmap fit`), or give --data.detections exact
a file of detections that is not there
    $ heatlift lift fit -c lift.yaml --data.detections found/none.json
    4: --data.detections found/none.json: no such file or folder; give exact,
no pretraining yet
    $ heatlift lift fit -c lift.yaml --model.pretrained newest
    2: train one first (`heatlift pretrain fit`), or give --model.pretrained none
pretraining for the first stage
    $ heatlift heatmap fit -c heatmap.yaml --model.pretrained newest
    2: heatmap has no stage before it; give a checkpoint
an own file that is not there
    $ heatlift lift fit -c lift.yaml --import none.py
    2: none.py: no such file
resuming by a checkpoint
    $ heatlift lift fit -c lift.yaml --ckpt_path x.ckpt
    2: --ckpt_path x.ckpt: fit resumes automatically
a test without weights
    $ heatlift lift test -c lift.yaml
    2: no weights are given; give --ckpt_path CHECKPOINT or
a checkpoint that is not there
    $ heatlift lift test -c lift.yaml --ckpt_path no.ckpt
    4: no.ckpt: no such checkpoint; check the path
a test of the newest run without a run
    $ heatlift lift test -c lift.yaml --ckpt_path newest
    2: --ckpt_path newest: runs/lift has no finished run; train one, or give a checkpoint
a path as a name
    $ heatlift lift fit -c lift.yaml --name ../../x
    2: --name ../../x: is a path; give a name
comparing with nothing
    $ heatlift runs compare lift/a
    2: give two runs or more
no runs in this folder
    $ heatlift runs ls
    2: runs: has no runs; train one, or give the folder with --runs
a run of another folder
    $ heatlift runs show lift/x
    2: lift/x: is no run; `heatlift runs ls` lists them
a page that is not there
    $ heatlift docs own_lifer
    2: own_lifer: no such page; did you mean own_lifter?

# a motion engineer with a video

no input
    $ heatlift predict
    2: predict: no input; give a video, a folder of images or a 2D file
a video that is not there
    $ heatlift predict clip.mp4 -o out
    4: clip.mp4: no such file or folder
a damaged video
    $ heatlift predict broken.mp4
    4: broken.mp4: is neither a video, an image nor a file of 2D joints (json, npz); copy
a text
    $ heatlift predict notes.txt
    4: notes.txt: is neither a video, an image nor a file of 2D joints
an empty folder
    $ heatlift predict empty
    4: empty: has no images and no json files; give a folder of images, or
an address
    $ heatlift predict https://x.org/clip.mp4
    4: is a URL; download the file first and give its path
2D joints without a size
    $ heatlift predict joints.json
    2: joints.json: does not have the size of the image; give --size WIDTHxHEIGHT
no networks yet
    $ heatlift predict black.mp4
    4: no 2D network for real people yet: run heatlift weights get blazepose
a lifter that is not there
    $ heatlift predict black.mp4 --lifter best.ckpt
    4: best.ckpt: no such file; give the checkpoint of a lifter
a name with a dash
    $ heatlift predict -- -clip.mp4
    4: -clip.mp4: no such file or folder
another name with dashes
    $ heatlift predict -- --my-clip.mp4
    4: --my-clip.mp4: no such file or folder
a folder below a file
    $ heatlift predict black.mp4 -o notes.txt/out
    5: notes.txt/out: cannot be written (Not a directory); choose another --out
a number in words
    $ heatlift predict black.mp4 --max_people two
    2: predict: max_people: 'two' is not of type int
the number of no webcam
    $ heatlift predict 99999999999
    4: 99999999999: no such file or folder
centimetres
    $ heatlift predict black.mp4 --height 182
    2: height is 182; give metres between 0.3 and 3
a height with its unit
    $ heatlift predict black.mp4 --height 1.75m
    2: --height 1.75m: needs metres, one number for each person, as in --height 1.75
a range of time
    $ heatlift predict black.mp4 --time 2-5
    2: --time 2-5: needs start and end in seconds, as in --time 2 5.5
an option of another program
    $ heatlift predict black.mp4 --output o
    2: predict: unknown key output, did you mean out?
the stage for the command
    $ heatlift lift predict clip.mp4
    2: unknown argument clip.mp4; did you mean `heatlift predict clip.mp4`?
weights of another name
    $ heatlift weights get mediapipe
    2: mediapipe: no weights of this name; there are blazepose,
a motion that is not there
    $ heatlift export motion.npz --to bvh
    4: motion.npz: not found; check the path
a format that is not written
    $ heatlift export black.mp4 --to fbx
    2: export is fbx; known formats are npz, json, csv, trc, bvh
a folder that is not there
    $ heatlift data validate nofolder
    4: nofolder: is not a folder; give the folder of a data set
a folder without data
    $ heatlift data validate empty
    4: empty: has no known layout; `heatlift docs data` has the files of each data set
a mapping that is not there
    $ heatlift data validate empty --mapping m.yaml
    4: m.yaml: no such mapping; name a YAML file, or one of cmu

# an engineer with a cluster

fp16
    $ heatlift lift fit -c lift.yaml --trainer.precision fp16
    2: trainer.precision: fp16 is none of 32-true, bf16-mixed
16 without a GPU
    $ heatlift lift fit -c lift.yaml --trainer.precision 16
    2: --trainer.precision 16: needs a GPU; on a CPU give bf16-
16-true
    $ heatlift lift fit -c lift.yaml --trainer.precision 16-true
    2: 16-true: is for tests; steps of the optimizer are
clipping for a fused optimizer
    $ heatlift heatmap fit -c heatmap/hrnet_narrow --trainer.gradient_clip_val 1
    2: --trainer.gradient_clip_val 1: gradients of a fused opti
a GPU that is not there
    $ heatlift lift fit -c lift.yaml --trainer.accelerator gpu
    2: --trainer.accelerator gpu: torch finds no GPU here;
--gpus
    $ heatlift lift fit -c lift.yaml --gpus 1
    2: unknown key gpus, did you mean trainer.devices?
a typo of ddp
    $ heatlift lift fit -c lift.yaml --trainer.strategy dpp
    2: --trainer.strategy dpp: no such strategy; give auto or ddp
another logger
    $ heatlift lift fit -c lift.yaml --trainer.logger true
    2: --trainer.logger: cannot be set
no logger
    $ heatlift lift fit -c lift.yaml --trainer.logger false
    2: --trainer.logger: cannot be set
no checkpoints
    $ heatlift lift fit -c lift.yaml --trainer.enable_checkpointing false
    2: --trainer.enable_checkpointing: cannot be set; checkpoints are saved always
the same few batches
    $ heatlift lift fit -c lift.yaml --trainer.overfit_batches 1
    2: --trainer.overfit_batches: cannot be used, it replaces the seeded order of samples;
validation after a time
    $ heatlift lift fit -c lift.yaml --trainer.val_check_interval 00:00:00:01
    2: --trainer.val_check_interval 00:00:00:01: is a time, and a resumed run would validate at
nobody in a split
    $ heatlift lift fit -c lift.yaml --data.source.init_args.val 0
    2: synthetic: no subjects in val (all); raise --data.source.init_args.val
another folder of runs
    $ heatlift lift fit -c lift.yaml --trainer.default_root_dir x
    2: --trainer.default_root_dir: cannot be set; the folder of all runs is --runs
a mode of W&B
    $ heatlift lift fit -c lift.yaml --wandb maybe
    2: --wandb maybe: no such mode; give one of auto
saving never
    $ heatlift lift fit -c lift.yaml --save_every -3
    2: save_every is -3; give at least 1
more devices than processes
    $ RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 TORCHELASTIC_RUN_ID=x heatlift lift
      fit -c lift.yaml --trainer.devices 4 --trainer.accelerator cpu
    2: torchrun started 2 processes, 2 on this machine, and --trainer.devices 4
a rank that is no number
    $ RANK=first heatlift lift fit -c lift.yaml
    2: RANK is 'first', not a number; unset it, or use torchrun
"""
"""Mistake; command, with its environment before it; exit code and a part of the line."""

MISTAKES = [
    tuple(" ".join(part.split()) for part in row)
    for row in re.findall(
        r"^(\S.*)\n    \$ (.*(?:\n      .*)*)\n    (\d): (.*(?:\n      .*)*)", TABLE, re.MULTILINE
    )
]


def test_there_are_more_than_twenty_mistakes_and_none_twice():
    names = [line for line in TABLE.splitlines() if line[:1].strip("# ")]
    assert [row[0] for row in MISTAKES] == names
    assert len(names) == len({row[0] for row in MISTAKES}) == len({row[1] for row in MISTAKES})
    assert len(names) > 20


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Files that the mistakes name, and no folder of data."""
    monkeypatch.delenv("HEATLIFT_DATA", raising=False)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "broken.mp4").write_bytes(b"abc" * 99)
    (tmp_path / "joints.json").write_text("[]")
    (tmp_path / "empty").mkdir()
    video = cv2.VideoWriter(
        str(tmp_path / "black.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25, (64, 48)
    )
    for _ in range(5):
        video.write(np.zeros((48, 64, 3), np.uint8))
    video.release()


@pytest.mark.parametrize(
    ("command", "code", "line"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES]
)
def test_a_mistake_has_a_line_that_helps_and_an_exit_code(
    command, code, line, files, run_with_error, monkeypatch, tmp_path
):
    monkeypatch.setenv("HEATLIFT_WEIGHTS", str(tmp_path / "weights"))  # not those of the user
    words = shlex.split(command)
    while (word := words.pop(0)) != "heatlift":
        monkeypatch.setenv(*word.split("="))
    ended, printed = run_with_error(*words)
    assert line in printed
    assert ended == int(code)
    assert "a bug" not in printed
    assert not list(tmp_path.glob("runs/*/*"))
