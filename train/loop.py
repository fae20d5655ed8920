"""The training loop of a `Method`: steps, schedules, averages, checkpoints and logs."""

import contextlib
import json
import logging
import math
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import accelerate
import diffusers
import numpy as np
import psutil
import torch
from accelerate.tracking import get_available_trackers
from accelerate.utils import set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from tqdm import tqdm

from magicedit.errors import MagicEditError, TrainingError, reason_of
from magicedit.files import locked, shown, sweep, write_text, writing
from magicedit.imaging import save_image
from magicedit.provenance import Mark
from magicedit.train.compiled import check_compiler, compilation_explained
from magicedit.train.config import TrainConfig
from magicedit.train.engines import engine_of, make_accelerator
from magicedit.train.finished import finish, replaced_whole
from magicedit.train.methods import OBJECTIVES, Losses, Method
from magicedit.train.publish import push
from magicedit.train.samples import SampleOrder
from magicedit.train.signals import Signals, ignore_signals
from magicedit.train.state import (
    VALIDATION,
    Checkpoint,
    best_checkpoints,
    checkpoint_step,
    find_checkpoint,
    list_checkpoints,
    recover_checkpoints,
    retire_checkpoints,
    save_checkpoint,
    save_shards,
    validation_of,
)
from magicedit.train.throughput import StepFlops, Throughput, peak_flops
from magicedit.train.validation import Validation, evaluating

logger = logging.getLogger(__name__)

WORKER_LOST = "DataLoader worker (pid"  # in torch's message where one was killed, and no other
WORKER_RAISED = "in DataLoader worker process"  # where one raised an error
MAX_BAD_STEPS = 20  # consecutive non-finite steps that end a run


class Run:
    """A training run of a method, which holds its output folder while it is opened and while it trains.

    signals: what asks the run to end. Raises OutputError where another run holds the folder, or it cannot be
    written to.
    """

    def __init__(self, config: TrainConfig, signals: Signals | None = None):
        self.output_dir = Path(config.output_dir)
        self.signals = signals or Signals()
        self.accelerator = _accelerator(config)
        self.engine = engine_of(self.accelerator, config)
        with self._held():
            self._open(config)

    def _held(self) -> contextlib.AbstractContextManager[None]:
        """Holds the output folder, in one process."""
        alone = self.accelerator.is_main_process
        return locked(self.output_dir) if alone else contextlib.nullcontext()

    def _open(self, config: TrainConfig) -> None:
        """Completes what a killed run left, makes everything that this one needs, and resumes it."""
        self.engine.alone(self._tidy)
        set_seed(config.seed)
        torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
        self.method = OBJECTIVES[config.objective](config, self.accelerator)
        config = self.config = self.method.config
        self.engine.prepare(self.method)
        self.modules, self.optimizers = self.engine.modules, self.engine.optimizers
        self.networks, self.parameters = self.engine.networks, self.engine.averaged
        self.schedules = {name: self._schedule(optimizer) for name, optimizer in self.optimizers.items()}
        # Of log and checkpoint entries; a single optimizer has none
        self.prefixes = {name: f"{name}_" if len(self.optimizers) > 1 else "" for name in self.optimizers}
        average = {"decay": config.ema_decay, "use_ema_warmup": True, "power": 0.75}
        self.ema = EMAModel(self.parameters, **average) if config.use_ema else None
        self.step = self.samples_seen = self.bad_steps = 0
        self.shown: dict[str, str] = {}  # newest values beside the progress bar
        self.saved = -1  # the step of the newest checkpoint of this run
        self.validation = Validation.open(self.method)
        self.validated: dict[str, Any] | None = None  # of the present weights, as checkpoints keep it
        self.best: tuple[float, int] | None = None  # the lowest validation loss, and its step
        if config.resume_from_checkpoint:
            self._resume()
        elif list_checkpoints(self.output_dir):
            raise TrainingError(
                f"{shown(self.output_dir)} holds checkpoints of an earlier run: resume it with "
                "--resume_from_checkpoint latest, or name another --output_dir"
            )
        self.accelerator.wait_for_everyone()  # all read the same checkpoints
        if (best := best_checkpoints(self.output_dir)) and self.validation is not None:
            record = validation_of(best[0])
            if record["meaning"] == self.validation.meaning:
                self.best = (record["loss"], checkpoint_step(best[0]))
        if config.report_to != "none":
            settings = {k: str(v) for k, v in config.to_dict().items()}
            try:
                self.accelerator.init_trackers("magicedit", settings)
            except Exception as error:  # trackers raise anything, such as on a missing login
                raise TrainingError(
                    f"--report_to {config.report_to} cannot be started ({type(error).__name__}: "
                    f"{reason_of(error)}); set it up, or leave it out"
                ) from error

    def _tidy(self) -> None:
        """Completes or deletes what a killed run left."""
        sweep(self.output_dir)
        recover_checkpoints(self.output_dir)
        finish(self.output_dir)

    def _schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        config = self.config
        steps = {"num_warmup_steps": config.lr_warmup_steps, "num_training_steps": config.max_train_steps}
        try:
            return get_scheduler(config.lr_scheduler, optimizer, **steps)
        except ValueError as error:
            raise TrainingError(f"--lr_scheduler {config.lr_scheduler}: {error}") from error
        except (AttributeError, TypeError) as error:  # piecewise_constant, without its rules
            raise TrainingError(
                f"--lr_scheduler {config.lr_scheduler} needs more than a name; choose another, such as cosine"
            ) from error

    def _loader(self) -> torch.utils.data.DataLoader:
        config = self.config
        order = SampleOrder(
            *(self.step, config.max_train_steps, config.gradient_accumulation_steps),
            *(config.train_batch_size, self.accelerator.process_index, self.accelerator.num_processes),
        )
        return torch.utils.data.DataLoader(
            self.method.samples(),
            batch_size=config.train_batch_size,
            sampler=order,
            num_workers=config.dataloader_num_workers,
            worker_init_fn=ignore_signals,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _batches(self) -> Generator[dict]:
        """Yields batches of the remaining steps. TrainingError where a process that prepares them is killed.

        That is noticed where a batch is awaited, before its step changes anything, and not by torch's
        handler, which raises anywhere.
        """
        number = getattr(signal, "SIGCHLD", None)
        before = None if number is None else signal.getsignal(number)
        batches = iter(self._loader())
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(number, before)
        try:
            while True:
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except RuntimeError as error:
                    if WORKER_LOST not in str(error):
                        raise
                    self._lost_worker(error)
                except (EOFError, OSError) as error:  # of a batch whose tensors a killed process held
                    if not self.config.dataloader_num_workers or WORKER_RAISED in str(error):
                        raise
                    self._lost_worker(error)
                yield batch
        finally:
            del batches  # ends its processes, on which Python waits at its exit

    def _lost_worker(self, error: RuntimeError) -> NoReturn:
        """Saves the step reached, where no other process would have to, and raises TrainingError."""
        if self.accelerator.num_processes == 1 and self.saved != self.step:
            self._save()
        kept = f"resume from latest, step {self.saved}," if self.saved >= 0 else "start again"
        raise TrainingError(
            f"a process that prepares batches was killed after step {self.step}, perhaps for lack of memory; "
            f"{kept} with fewer --dataloader_num_workers"
        ) from error

    def _train_step(self, batches: Iterator[dict]) -> dict[str, float] | None:
        """Makes the method's updates, each over all micro-batches; None if one was not finite and skipped."""
        micro_steps = self.config.gradient_accumulation_steps
        micro_batches = [self.method.losses(next(batches), self.networks) for _ in range(micro_steps)]
        logged: dict[str, float] = {}
        all_finite = True
        while found := self._backward(micro_batches):
            name, values, finite = found
            norm, finite = self.engine.update(name, finite, self.config.max_grad_norm)
            if finite:
                self.schedules[name].step()
            all_finite &= finite
            values |= {"grad_norm": norm, "lr": self.optimizers[name].param_groups[0]["lr"]}
            logged |= {f"{self.prefixes[name]}{key}": value for key, value in values.items()}
        if not all_finite:
            return None
        if self.ema is not None:
            self.ema.step(self.parameters)
        return logged

    def _backward(self, micro_batches: list[Losses]) -> tuple[str, dict[str, float], bool] | None:
        """Adds gradients of the next loss of every micro-batch; returns its optimizer, values to log, and
        whether it is finite; None after the last."""
        values: dict[str, float] = {}
        name, finite, share = None, True, len(micro_batches)
        for number, losses in enumerate(micro_batches, start=1):
            with self.engine.accumulating() if number < share else contextlib.nullcontext():
                if (found := next(losses, None)) is None:
                    continue  # no loss is left, in no micro-batch
                name, loss, parts = found
                # All processes must agree and run backward, because each waits for the others' gradients
                finite &= bool(torch.isfinite(self.accelerator.gather(loss.detach())).all())
                self.engine.backward(name, loss / share, finite)
            for key, value in {"loss": loss, **parts}.items():
                values[key] = values.get(key, 0.0) + float(value.detach()) / share
        return None if name is None else (name, values, finite)

    def _save(self) -> None:
        self.saved = self.step
        tensors = {name: self.engine.module_state(name) for name in self.modules}
        state = {
            "step": self.step,
            "samples_seen": self.samples_seen,
            "world_size": self.accelerator.num_processes,
            "config": self.config.to_dict(),
            "data": self.method.data_digest(),
            "versions": {m.__name__: m.__version__ for m in (torch, diffusers, accelerate)},
            **self.method.state(),
        }
        for name, prefix in self.prefixes.items():
            optimizer = f"{prefix}optimizer"
            tensors[optimizer], state[optimizer] = self.engine.optimizer_state(name)
            schedule = self.schedules[name].state_dict()
            schedule.pop("lr_lambdas", None)  # functions; `get_scheduler` makes them again
            plain = {k: v for k, v in schedule.items() if isinstance(v, int | float | list)}
            state[f"{prefix}lr_scheduler"] = plain
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        if self.validated is not None:
            state[VALIDATION] = self.validated
        if self.ema is not None:
            ema = self.ema.state_dict()
            tensors["ema"] = self.engine.average_state(ema.pop("shadow_params"))
            state["ema"] = ema
        checkpoint = (self.output_dir, self.step, tensors, state, self.config.checkpoints_total_limit)
        if self.engine.sharded:
            save_shards(*checkpoint, self.engine.group, self.engine.alone)
        else:
            self.engine.alone(lambda: save_checkpoint(*checkpoint))

    def _resume(self) -> None:
        """Takes over a checkpoint, and retires those of another branch."""
        named = self.config.resume_from_checkpoint
        folder = self.engine.alone(lambda: find_checkpoint(self.output_dir, named))
        if folder is None:
            logger.warning("no whole checkpoint in %s: starting at step 0", self.output_dir)
            return
        try:
            self._restore(folder)
        except MagicEditError:
            raise
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise TrainingError(
                f"{shown(folder)} is not a checkpoint of such a run ({type(error).__name__}: "
                f"{str(error)[:300]}); name another --output_dir"
            ) from error
        logger.info("resumed from %s", folder)
        # Else it is of another run or branch, as abandoned-N is
        own = folder.resolve() == self.output_dir.resolve() / f"checkpoint-{self.step}"
        self.accelerator.wait_for_everyone()  # all have read it
        if own:
            if named != "latest":
                self._retire(self.step)
            self.saved = self.step
        else:  # where "latest" finds it from now on
            self._retire(-1)
            self._save()

    def _retire(self, step: int) -> None:
        """Renames the checkpoints after a step."""

        def retire() -> None:
            for folder in retire_checkpoints(self.output_dir, step):
                logger.warning("a later checkpoint is set aside as %s; delete it to save space", folder)

        self.engine.alone(retire)

    def _restore(self, folder: Path) -> None:
        """Loads a checkpoint. TrainingError where it is of another kind of run."""
        saved = Checkpoint.open(folder)
        state = saved.state
        unfit, others = self.config.changed_since(state["config"])
        if unfit:
            raise TrainingError(f"{shown(folder)} was trained with other settings: {', '.join(unfit)}")
        self.method.check(state)
        if state.get("data", data := self.method.data_digest()) != data:
            logger.warning("resuming with another dataset than before: its photographs or labels differ")
        if others:
            logger.warning("resuming with other settings than before: %s", ", ".join(others))
        before, now = state["world_size"], self.accelerator.num_processes
        if before != now:
            logger.warning(
                "resuming a run of %d processes with %d: it continues, but not bit for bit", before, now
            )
        for name in self.modules:
            self.engine.load_module(name, saved)
        for name, prefix in self.prefixes.items():
            optimizer, schedule = f"{prefix}optimizer", self.schedules[name]
            self.engine.load_optimizer(name, saved, optimizer, state[optimizer])
            schedule.load_state_dict({**schedule.state_dict(), **state[f"{prefix}lr_scheduler"]})
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict({**state["ema"], "shadow_params": []})  # it would copy them
            self.ema.shadow_params = self.engine.load_average(saved)
        self.step, self.samples_seen = state["step"], state["samples_seen"]
        self.validated = state.get(VALIDATION)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Puts the averaged weights, if any, into the modules meanwhile."""
        if self.ema is not None:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)
            self.engine.renew()
        try:
            yield
        finally:
            if self.ema is not None:
                self.ema.restore(self.parameters)
                self.engine.renew()

    @contextlib.contextmanager
    def _presented(self, device: torch.device) -> Iterator[Method | None]:
        """Yields the method with averaged weights in the main process, None in others; see `Engine.whole`."""
        averaged = self._averaged() if self.engine.sharded or self.accelerator.is_main_process else None
        with averaged or contextlib.nullcontext(), self.engine.whole(device) as method:
            yield method

    def _validate(self) -> dict[str, float]:
        """Returns values of the averaged weights on held-out people for the log; none without validation."""
        if self.validation is None:
            return {}
        with self._averaged():
            values = self.validation.losses(self.networks, self.accelerator)
        loss = values["validation_loss"]
        self.validated = {"loss": loss, "meaning": self.validation.meaning}
        if math.isfinite(loss) and (self.best is None or loss < self.best[0]):
            self.best = (loss, self.step)
        return values

    def _preview(self) -> None:
        with self._presented(self.accelerator.device) as method:
            self.engine.alone(lambda: self._show(method.preview()))

    def _show(self, picture: np.ndarray | None) -> None:
        """Writes a preview."""
        if picture is None:
            return
        folder = self.output_dir / "previews"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        marked = Image.fromarray(picture)
        Mark({"step": self.step}).put_on(marked)
        save_image(marked, folder / f"step-{self.step:07d}.png")
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"preview": picture[None]}, step=self.step, **layout)

    def train(self) -> None:
        """Trains to the end, or until a signal asks it to stop; the checkpoint is then of the step reached.

        A signal while the result is written does not stop that. Raises KeyboardInterrupt at the end where the
        signal was Ctrl-C's; others end it without an error.
        """
        with self._held(), self.signals:
            if stopped := self._train():
                name = signal.Signals(stopped).name
                logger.warning("stopped by %s after step %d; resume it from latest", name, self.step)
            else:
                self._finish()
            stopped = self._stopped()
            self.accelerator.end_training()
        if stopped == signal.SIGINT:
            raise KeyboardInterrupt

    def _stopped(self) -> int:
        """Returns the number of the signal that asks one of the processes to stop; 0: none."""
        received = self.signals.received
        if self.accelerator.num_processes == 1:
            return received
        return int(self.accelerator.gather(torch.tensor([received], device=self.accelerator.device)).max())

    def _train(self) -> int:
        """Trains and saves the last step; returns the signal that ended it before, or 0."""
        config, accelerator = self.config, self.accelerator
        if accelerator.is_main_process:
            settings = {**config.to_dict(), "world_size": accelerator.num_processes}
            write_text(self.output_dir / "train_config.json", json.dumps(settings, indent=1))
        per_step = config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
        flops = self._compiled_flops() if config.compile else None
        with contextlib.closing(self._batches()) as batches:
            self.throughput = Throughput(batches, per_step, self._peak, config.gradient_checkpointing, flops)
            stopped = self._take_steps()
        if self.saved != self.step:
            self._save()
        accelerator.wait_for_everyone()
        return stopped

    def _take_steps(self) -> int:
        """Trains to the last step; returns the signal that ended it before, or 0."""
        config, hidden = self.config, not self.accelerator.is_main_process
        progress = tqdm(total=config.max_train_steps, initial=self.step, desc="training", disable=hidden)
        explained = compilation_explained if config.compile else contextlib.nullcontext
        stopped = self._stopped()
        while not stopped and self.step < config.max_train_steps and not self.method.finished():
            with explained(), self.throughput.step():
                logged = self._train_step(self.throughput.batches)
            self.step += 1
            self.validated, values = None, {}
            self.samples_seen += self.throughput.images
            progress.update()
            self.bad_steps = 0 if logged is not None else self.bad_steps + 1
            if logged is None:
                logger.warning("step %d was not finite; its update was skipped", self.step)
                if self.bad_steps >= MAX_BAD_STEPS:
                    raise TrainingError(
                        f"{MAX_BAD_STEPS} steps in a row were not finite; lower --learning_rate or use bf16. "
                        "The last checkpoint is intact."
                    )
            elif self.step % config.logging_steps == 0 or self.step == config.max_train_steps:
                values = self._mean(logged) | self.throughput.values() | self._resources()
            with self.throughput.paused():
                shows = config.validation_steps and self.step % config.validation_steps == 0
                if shows:
                    values |= self._validate()
                if values:
                    self._log(values, progress)
                if every := config.checkpointing_steps:
                    lowest = self.best is not None and self.best[1] == self.step
                    if lowest or self.step % every == 0:
                        self._save()
                if shows:
                    self._preview()
            stopped = self._stopped()
        progress.close()
        return stopped

    def _finish(self) -> None:
        """Writes the result, and pushes it if asked to."""
        with self._presented(torch.device("cpu")) as method:
            self.engine.alone(lambda: self._export(method))
        # The others wait, because the end of one would end the main process too
        self.engine.alone(lambda: push(self.config, self.output_dir))

    def _export(self, method: Method) -> None:
        with replaced_whole(self.output_dir) as folder:
            method.export(folder, self.step, self.samples_seen)
        logger.info("wrote the result into %s", self.output_dir)

    def _compiled_flops(self) -> int:
        """Returns FLOPs of a step whose networks are compiled, which do not run while they are counted.

        They are those of a single sample, without compilation, times the samples.
        """
        sample = torch.utils.data.default_collate([self.method.samples()[0]])
        eagerly = torch.compiler.set_stance("force_eager")
        with evaluating(self.modules), eagerly, StepFlops() as counter:
            _, loss, _ = next(self.method.losses(sample, self.modules))
            torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return counter.total * self.config.train_batch_size * self.config.gradient_accumulation_steps

    def _peak(self) -> float:
        """Returns FLOP/s of this process's device, see `peak_flops`."""
        dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16}
        dtype = dtypes.get(self.engine.precision, torch.float32)
        return peak_flops(self.accelerator.device, dtype, self.config.peak_tflops)

    def _mean(self, values: dict[str, float]) -> dict[str, float]:
        """Returns the means of values over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        own = torch.tensor(list(values.values()), device=self.accelerator.device)
        return dict(zip(values, self.accelerator.reduce(own, reduction="mean").tolist(), strict=True))

    def _resources(self) -> dict[str, float]:
        """Returns values for the log: memory in 10^6 bytes, and the method's counts since the last call."""
        counters = self.method.counters()
        own = [peak_memory(self.accelerator.device), *counters.values()]
        gathered = self.accelerator.gather(torch.tensor([own], device=self.accelerator.device))
        counts = dict(zip(counters, gathered[:, 1:].sum(dim=0).tolist(), strict=True))
        return {"memory_mb": float(gathered[:, 0].max()), **counts}

    def _log(self, values: dict[str, float], progress: tqdm) -> None:
        self.accelerator.log(values, step=self.step)
        if self.accelerator.is_main_process:
            names = [*(f"{prefix}loss" for prefix in self.prefixes.values()), "validation_loss"]
            self.shown |= {name: f"{values[name]:.4f}" for name in names if name in values}
            if "images_per_second" in values:
                self.shown["images_s"] = f"{values['images_per_second']:.1f}"
            progress.set_postfix(self.shown)
            line = {"step": self.step, **{k: float(f"{v:.6g}") for k, v in values.items()}}
            path = self.output_dir / "train_log.jsonl"
            with writing(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _accelerator(config: TrainConfig) -> accelerate.Accelerator:
    tracker = None if config.report_to == "none" else config.report_to
    if tracker not in (None, "all") and tracker not in {str(t.value) for t in get_available_trackers()}:
        raise TrainingError(
            f"--report_to must be none or an installed tracker of accelerate, such as tensorboard, got "
            f"{shown(tracker)!r}; install it, or leave it out"
        )
    project = str(Path(config.output_dir) / "logs")
    accelerator = make_accelerator(config, log_with=tracker, project_dir=project)
    if config.compile:
        check_compiler(accelerator.device)
    return accelerator


def peak_memory(device: torch.device) -> float:
    """Returns this process's peak memory, 10^6 bytes: allocated on a CUDA device, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def train(config: TrainConfig) -> None:
    """Trains into `config.output_dir`, see `Run.train`. MagicEditError where that is impossible."""
    with Signals() as signals:
        Run(config, signals).train()
