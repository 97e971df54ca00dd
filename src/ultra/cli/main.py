"""The command line: verbs only. Parse, call, print; everything heavy is imported by the verb."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ultra.common.errors import SettingError, UltraError
from ultra.common.files import to_json_text

if TYPE_CHECKING:
    from ultra.pipeline.progress import Reporter

Options = TypeVar("Options")

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

HELP = """\
usage: ultra VERB [options]       (`ultra VERB --help` explains a verb)

Find out why a reinforcement-learning policy fails, and make it better.

  quickstart   refine a policy that ships with the package, offline, in a few minutes
  tasks        list the known tasks
  train        train a policy from scratch
  refine       refine a policy: collect, identify, advise, verify, fine-tune, evaluate
  evaluate     score a policy in Gymnasium's own environment
  card         describe an environment, in a file to complete
  export       write a policy as a module of NumPy alone, or as a zip of Stable-Baselines3
  programs     check FILE: check programs of your own against a task (`--analyst programs:FILE`)
  report       tables, learning curves and an HTML page of a finished run or a study
  study        tasks x methods x analysts x seeds of a file, on this machine or a Ray cluster

the stages of `refine` one by one, on its run directory:
  collect      1. let the policy play and record episodes
  identify     2. name the critical states
  advise       2. suggest what to do there
  verify       3. try advice and programs in the simulator
  finetune     4. adopt programs, train with advice as guidance
  fidelity     score how well the critical states explain the episodes
  prompt       print what a language model is sent

language models as analysts (`--analyst llm:PROVIDER/MODEL`):
  llm check    send one tiny request and report what works
  ledger       list | cost | export | import | why-miss: every request and answer, none bought twice

everywhere: --quiet (no progress), --traceback (full errors). Commands that are repeated continue
where they stopped. Exit status: 0 done, 1 some runs of a study failed, 2 bad usage or input,
3 language model out of reach, 130 interrupted.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `ultra` command; ends the process with its exit status."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit status. User errors are printed on one line."""
    traceback = "--traceback" in arguments
    verb, *rest = [argument for argument in arguments if argument != "--traceback"] or ["help"]
    verbs = _verbs()
    status = 2
    try:
        if verb not in verbs:
            close = difflib.get_close_matches(verb, verbs, n=1)
            hint = f"did you mean `ultra {close[0]}`?" if close else "`ultra --help` lists the verbs"
            raise UltraError(f"unknown verb {verb!r}: {hint}")
        return verbs[verb](rest)
    except KeyboardInterrupt:
        message, status = "interrupted; repeat the same command to continue", INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has gone: nothing more to say
        return 0
    except UltraError as error:
        if traceback:
            raise
        message, status = _told(error, arguments), error.exit_status
    except OSError as error:
        if traceback:
            raise
        message = f"{error.strerror or error}: {error.filename or ''}"
    print(f"ultra {verb}: {message}", file=sys.stderr)
    return status


def _told(error: UltraError, arguments: list[str]) -> str:
    """What is wrong, with options as they were typed."""
    if not isinstance(error, SettingError):
        return str(error)
    typed = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    return f"{next((option for option in error.options if option in typed), error.options[0])} {error.rest}"


def _verbs() -> dict[str, Callable[[list[str]], int]]:
    stages = {name: _stage_verb(name) for name in ("identify", "advise", "verify", "finetune")}
    return {
        **dict.fromkeys(("help", "--help", "-h"), _help),
        "--version": _version,
        "quickstart": _quickstart,
        "tasks": _tasks,
        "train": _train,
        "refine": _refine,
        "collect": _collect,
        **stages,
        "evaluate": _evaluate,
        "card": _of_verbs("card"),
        "export": _of_verbs("export"),
        "report": _report,
        "fidelity": _fidelity,
        "study": _study,
        "prompt": _prompt,
        "llm": _group("llm"),
        "ledger": _group("ledger"),
        "programs": _group("programs"),
    }


def _help(arguments: list[str]) -> int:
    print(HELP, end="")
    return 0


def _version(arguments: list[str]) -> int:
    from ultra import __version__

    print(f"ultra {__version__}")
    return 0


def _parse(kind: type[Options], verb: str, arguments: list[str], default: Options | None = None) -> Options:
    """Parse a verb's options; ends the process with status 2 on bad usage, 0 after `--help`."""
    import tyro

    from ultra.cli.numbers import REGISTRY
    from ultra.common.settings import checked_at_the_end

    about = (kind.__doc__ or "").strip()
    if not hasattr(kind, "quiet"):  # it shows no progress
        arguments = [argument for argument in arguments if argument != "--quiet"]
    given: Any = {} if default is None else {"default": default}
    with checked_at_the_end():
        found: Options = tyro.cli(
            kind, prog=f"ultra {verb}", description=about, args=arguments, registry=REGISTRY, **given
        )
    return found


def _reporter(quiet: bool) -> Reporter:
    from ultra.pipeline.progress import Reporter

    return Reporter(quiet)


def _overlay(kind: type[Any], arguments: list[str]) -> tuple[Any, list[str]]:
    """Settings of `--config FILE` as defaults, and the arguments without it."""
    import tyro
    import yaml

    from ultra.common.records import record_from

    for place, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--config":
            rest = arguments[:place] + arguments[place + (1 if value else 2) :]
            path = Path(value or (arguments[place + 1] if place + 1 < len(arguments) else ""))
            try:
                raw = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (OSError, yaml.YAMLError) as error:
                raise UltraError(f"cannot read --config {path}: {error}") from error
            if not isinstance(raw, dict):
                raise UltraError(f"--config {path} must hold settings by name, not {raw!r}")
            return record_from(kind, raw, missing=tyro.MISSING), rest
    return None, arguments


def _tasks(arguments: list[str]) -> int:
    from ultra.cli.arguments import TasksArguments
    from ultra.tasks import known_tasks

    _parse(TasksArguments, "tasks", arguments)
    for name, summary in known_tasks().items():
        print(f"{name:<18} {summary}")
    print("Any other Gymnasium id works too, for instance CartPole-v1.")
    return 0


def _train(arguments: list[str]) -> int:
    from ultra.cli.arguments import TrainArguments, settings_of
    from ultra.config import TrainConfig

    default, rest = _overlay(TrainArguments, arguments)
    options = _parse(TrainArguments, "train", rest, default)
    from ultra.api import train

    config, out = (
        settings_of(options, TrainConfig),
        options.out or Path("runs") / f"train-{options.task}-{options.seed}",
    )
    result = train(config, out, _reporter(options.quiet))
    mean, (low, high) = result["return"]["last"]["mean"], result["return"]["last"]["ci95"]
    print(f"{config.task}: return {mean:.1f} [{low:.1f}, {high:.1f}] after {config.steps:,} steps; policy in {out}")
    return 0


def _refine(arguments: list[str]) -> int:
    from ultra.cli.arguments import RefineArguments, settings_of
    from ultra.config import RefineConfig

    default, rest = _overlay(RefineArguments, arguments)
    options = _parse(RefineArguments, "refine", rest, default)
    from ultra.api import refine, report

    name = "-".join([options.task, options.method, str(options.seed)])
    out = options.out or Path("runs") / name
    result = refine(settings_of(options, RefineConfig), out, _reporter(options.quiet))
    folder = report(out)
    _print_result(result, out)
    print(f"report: {folder / 'report.html'}")
    return 0


def _print_result(result: dict[str, Any], out: Path) -> None:
    from ultra.pipeline.reporting import interval

    returns = result["return"]
    print(f"start   {interval(returns['start'])}")
    print(f"last    {interval(returns['last'])}")
    if result["improved"]:
        print(f"improved by {interval(returns['gain'])}; the better policy is {out / 'policy' / 'best'}")
    else:
        print(
            f"no improvement found (difference {interval(returns['gain'])}): {out / 'policy' / 'best'} is the "
            f"starting policy, {out / 'policy' / 'last'} the refined one"
        )


def _collect(arguments: list[str]) -> int:
    from ultra.cli.arguments import CollectArguments, settings_of
    from ultra.config import RefineConfig

    default, rest = _overlay(CollectArguments, arguments)
    options = _parse(CollectArguments, "collect", rest, default)
    from ultra import api
    from ultra.common.locks import hold_directory
    from ultra.pipeline.refinement import Refinement

    if not (options.run / "policy" / "start" / "policy.json").exists():
        if not options.task or not options.policy:
            raise UltraError(f"{options.run} is new: say what to refine, `ultra collect RUN --task TASK --policy DIR`")
        with hold_directory(options.run):
            Refinement.start(options.run, settings_of(options, RefineConfig), _reporter(quiet=True))
    print(api.collect(options.run, _reporter(options.quiet)))
    return 0


def _stage_verb(stage: str) -> Callable[[list[str]], int]:
    def verb(arguments: list[str]) -> int:
        from ultra.cli.arguments import StageArguments

        options = _parse(StageArguments, stage, arguments)
        from ultra import api
        from ultra.pipeline.run import Run

        folder = api.run_stage(options.run, stage, _reporter(options.quiet))
        if stage in ("advise", "verify"):
            _print_advice(folder / {"advise": "advice.jsonl", "verify": "verified.jsonl"}[stage])
        if stage == "verify":
            _print_audit(options.run)
        if stage == "finetune" and (options.run / "result.json").is_file():
            _print_result(Run.open(options.run).read_result(), options.run)
        print(folder)
        return 0

    return verb


def _print_advice(path: Path) -> None:
    from ultra.advice.records import load_advice
    from ultra.pipeline.reporting import explain

    for item in load_advice(path):
        print(explain(item), end="\n\n")


def _print_audit(path: Path) -> None:
    from ultra.pipeline.audit import audit_of_run
    from ultra.pipeline.reporting import audit_table
    from ultra.pipeline.run import Run

    run = Run.open(path)
    found = audit_of_run(run)
    if found is not None:
        print(audit_table(found, run.config.analyst))


def _evaluate(arguments: list[str]) -> int:

    from ultra.cli.arguments import EvaluateArguments

    options = _parse(EvaluateArguments, "evaluate", arguments)
    from ultra.api import evaluate
    from ultra.pipeline.checks import task_of
    from ultra.policies.opening import open_policy

    found = open_policy(options.policy, options.vecnormalize, trust_pickle=options.trust_pickle)
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    task = task_of(options)
    estimate = evaluate(found.policy, task, options.episodes, options.seed, options.workers)
    if task.note:
        print(f"{task.name}: {task.note}", file=sys.stderr)
    if options.json:
        print(to_json_text({"task": options.task, "seed": options.seed, **estimate.as_dict()}))
    else:
        print(f"{options.task}: return {estimate} (mean and 95% interval, {estimate.count} episodes)")
    return 0


def _report(arguments: list[str]) -> int:
    from ultra.cli.arguments import ReportArguments

    options = _parse(ReportArguments, "report", arguments)
    from ultra.api import report

    folder = report(options.run, options.out)
    print((folder / "table.md").read_text(encoding="utf-8"))
    print(f"report: {folder / 'report.html'}")
    return 0


def _fidelity(arguments: list[str]) -> int:

    from ultra.cli.arguments import FidelityArguments

    options = _parse(FidelityArguments, "fidelity", arguments)
    from ultra.api import fidelity
    from ultra.pipeline.reporting import describe_fidelity

    for score in fidelity(options.run, options.round):
        print(to_json_text(score) if options.json else describe_fidelity(score))
    return 0


def _study(arguments: list[str]) -> int:
    from ultra.cli.arguments import StudyArguments

    options = _parse(StudyArguments, "study", arguments)
    from ultra.api import report, study

    outcome = study(options.file, options.out, options.on, options.address, options.jobs, _reporter(options.quiet))
    if outcome.compared:
        print(f"report: {report(options.out) / 'report.html'}")
    for error in dict.fromkeys(outcome.failed.values()):
        names = [name for name, why in outcome.failed.items() if why == error]
        print(f"failed: {', '.join(names)}: {error or 'not done'}", file=sys.stderr)
    return 1 if outcome.failed else 0


def _prompt(arguments: list[str]) -> int:
    from ultra.cli.arguments import PromptArguments

    options = _parse(PromptArguments, "prompt", arguments)
    from ultra.cli.prompt import prompts_of_run

    if options.count:
        from ultra.cli.verbs import print_token_counts

        return print_token_counts(options.run, options.round)
    for title, text in prompts_of_run(options.run, options.episode, options.round):
        print(f"===== {title} =====\n\n{text}\n")
    return 0


def _group(name: str) -> Callable[[list[str]], int]:
    """A verb with verbs of its own, in `ultra.cli.verbs`."""

    def verb(arguments: list[str]) -> int:
        from ultra.cli.verbs import GROUPS

        known = GROUPS[name]
        part, *rest = arguments or ["--help"]
        if part in ("--help", "-h"):
            print(f"usage: ultra {name} {{{','.join(known)}}} [options]")
            for word, (kind, _) in known.items():
                print(f"  {word:<9} {(kind.__doc__ or '').strip().splitlines()[0]}")
            return 0
        if part not in known:
            raise UltraError(f"unknown verb {part!r}: one of {', '.join(known)}")
        kind, act = known[part]
        return act(_parse(kind, f"{name} {part}", rest))

    return verb


def _of_verbs(name: str) -> Callable[[list[str]], int]:
    """A verb that `ultra.cli.verbs` carries out."""

    def verb(arguments: list[str]) -> int:
        from ultra.cli.verbs import VERBS

        kind, act = VERBS[name]
        return act(_parse(kind, name, arguments))

    return verb


def _quickstart(arguments: list[str]) -> int:
    from ultra.cli.arguments import QuickstartArguments

    options = _parse(QuickstartArguments, "quickstart", arguments)
    from ultra.cli.quickstart import quickstart

    quickstart(options.task, options.out, options.steps, options.seed, _reporter(options.quiet))
    return 0
