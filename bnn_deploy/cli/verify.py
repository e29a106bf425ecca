"""`bnn-deploy verify`: the equivalence proof of a converted model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bnn_deploy.cli import CHECK_FAILED
from bnn_deploy.cli.config import config_option
from bnn_deploy.cli.console import explain, facts, print_json, printable, progress, remark, show, table
from bnn_deploy.cli.options import Proof, example, proof_options
from bnn_deploy.cli.page_file import PICTURES, html_option, make_record, note_result, require_page, write_page
from bnn_deploy.files import require_outputs, write_files
from bnn_deploy.proof.backends import EVALUATOR_SAMPLES, EVALUATOR_SECONDS, SLOW_SAMPLES
from bnn_deploy.proof.golden.check import GoldenVerification, check_golden
from bnn_deploy.proof.junit import junit_xml
from bnn_deploy.proof.margins import AGREEING_ERROR
from bnn_deploy.proof.results import Interrupted, OperatorResult, OutputResult, Tolerances, Verification
from bnn_deploy.proof.verification import verify
from bnn_deploy.quantities import percent, plural
from bnn_deploy.system import let_waiting_threads_sleep

_PATH = click.Path(dir_okay=False, path_type=Path)


@click.command(
    name="verify",
    epilog=example("bnn-deploy verify lenet5.onnx --against lenet5.pth.tar --data mnist_1000.npz", in_demo=True),
)
@click.argument("model", type=_PATH, metavar="MODEL.onnx")
@click.option("--golden", type=_PATH, metavar="FILE", help="Instead: the golden.npz of a bundle; needs no torch.")
@proof_options
@click.option(
    "--pictures",
    type=click.IntRange(0),
    help=f"Put small pictures of up to so many samples, of those that differ most, into JSON and page; {PICTURES} with "
    "--html if left out, else none.",
)
@click.option(
    "--slow-samples",
    type=click.IntRange(1),
    default=SLOW_SAMPLES,
    help="Inputs for what is slow: the function bodies in onnxruntime, the scalar kernels.",
)
@click.option(
    "--reference-samples",
    type=click.IntRange(1),
    help="Inputs for onnx's ReferenceEvaluator, which is slower still; if left out, up to "
    f"{EVALUATOR_SAMPLES} in {EVALUATOR_SECONDS:g} seconds.",
)
@click.option("--isa", "isas", multiple=True, metavar="NAME", help="Instruction set to run; repeatable; default all.")
@click.option("--threads", type=click.IntRange(1), help="Intra-op threads; one per core if left out.")
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    default=Tolerances().min_agreement,
    show_default=True,
    help="Share of the samples whose outputs must agree with the reference's, running free.",
)
@html_option
@click.option("--junit", type=_PATH, metavar="FILE.xml", help="Also write the result as JUnit XML, for CI.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the full result as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    model: Path,
    golden: Path | None,
    proof: Proof,
    pictures: int | None,
    slow_samples: int,
    reference_samples: int | None,
    isas: tuple[str, ...],
    threads: int | None,
    min_agreement: float,
    html: Path | None,
    junit: Path | None,
    as_json: bool,
) -> int:
    """Prove that MODEL.onnx computes what the checkpoint or float model does: bit by bit, layer by layer, by class.

    Without --against, it is held against the file that it was converted from, if that is still there.

    Runs PyTorch (or the float model), the function bodies in the file in stock onnxruntime and in onnx's
    ReferenceEvaluator, and the C++ kernels of every instruction set of this machine. Exit code 1 if the proof fails.

    With --golden: prove that this machine computes, bit by bit, what the machine that made the bundle computed.
    """
    read = {"model": model, "source": proof.against, "golden file": golden, "file of inputs": proof.data}
    require_outputs({"page": html, "JUnit XML": junit}, read)
    require_page(html, read)
    if golden is not None:
        _refuse_with_golden(ctx)
        checked = _verify_golden(model, golden, isas, threads, as_json)
        _write(model, checked, {"golden": checked.to_json()}, html, junit)
        return 0 if checked.passed else CHECK_FAILED
    let_waiting_threads_sleep()

    def tell(result: Verification) -> None:
        (_print_json if as_json else print_verification)(result)
        _write(model, result, {"verification": result.to_json()}, html, junit)

    try:
        with progress() as step:
            result = verify(
                model,
                **vars(proof),
                pictures=pictures if pictures is not None else PICTURES if html is not None else 0,
                slow_samples=slow_samples,
                reference_samples=reference_samples,
                isas=isas or None,
                threads=threads,
                tolerances=Tolerances(min_agreement=min_agreement),
                progress=step,
            )
    except Interrupted as stopped:
        if stopped.result.operators or stopped.result.samples:
            tell(stopped.result)
        raise
    tell(result)
    return 0 if result.passed else CHECK_FAILED


def _print_json(result: Verification) -> None:
    print_json(result.to_json())


def _write(
    model: Path,
    result: Verification | GoldenVerification,
    parts: dict[str, dict[str, Any]],
    html: Path | None,
    junit: Path | None,
) -> None:
    """Write the page and the JUnit XML that were asked for, and leave the result for `run`."""
    for part, content in parts.items():
        note_result(part, content)
    if html is not None:
        write_page(html, make_record(model, parts))
        remark(f"wrote {html}")
    if junit is not None:
        write_files({junit: junit_xml(result)})
        remark(f"wrote {junit}")


_WITH_GOLDEN = {"golden", "isas", "threads", "html", "junit", "as_json"}
"""The options that go with --golden: the file has its own inputs, and needs no reference."""


def _refuse_with_golden(ctx: click.Context) -> None:
    """Refuse all other options."""
    for option in ctx.command.params:
        typed = ctx.get_parameter_source(option.name or "") is click.core.ParameterSource.COMMANDLINE
        if typed and isinstance(option, click.Option) and option.expose_value and option.name not in _WITH_GOLDEN:
            raise click.UsageError(f"{option.opts[0]} and --golden exclude each other")


def _verify_golden(
    model: Path, golden: Path, isas: tuple[str, ...], threads: int | None, as_json: bool
) -> GoldenVerification:
    with progress() as step:
        result = check_golden(model, golden, isas=isas or None, threads=threads, progress=step)
    if as_json:
        print_json(result.to_json())
    else:
        print_golden(result)
    return result


def print_golden(result: GoldenVerification) -> None:
    """Print both parts of a check against golden results, and PASSED or FAILED."""
    made = result.made_with
    show(
        facts(
            [
                ("model", result.model),
                ("golden", f"{result.golden}: {plural(result.samples, 'sample')}"),
                ("made with", f"{made['cpu']}, kernels {made['isa']}, onnxruntime {made['onnxruntime']}"),
                ("kernels", f"{', '.join(result.isas)} (all of them ran, by the library's own count)"),
            ]
        )
    )
    show("")
    explain("1. Layers: each fed with the golden bits of the one before; the worst over all backends.")
    explain(
        "   What is made of integers must be equal; where a float is near its threshold, rounding may flip the bit."
    )
    numbers = ["compared", "near", "differ"]
    rows = table(None, ["layer", "output", *numbers, ""], numbers, optional=["near", "compared"])
    for layer in result.layers:
        kind = f"bits of {layer.made_from}{', int8' if layer.quantized else ''}"
        near = f"{layer.near:,}" if layer.made_from == "floats" else "-"
        verdict = "ok" if layer.passed else "FAILED"
        rows.add_row(printable(layer.layer), kind, f"{layer.bits:,}", near, f"{layer.differing:,}", verdict)
    for floats in result.float_layers:
        differ = plural(floats.differing, "sample") if floats.differing else "0"
        verdict = "ok" if floats.passed else "FAILED"
        rows.add_row(printable(floats.layer), "floats of integers", f"{floats.values:,}", "-", differ, verdict)
    show(rows)
    show("")
    explain(f"2. Outputs: running free; allowed are errors of {result.float_relative:g} of the largest in the channel.")
    named = any(output.output for output in result.outputs)
    numbers = ["samples", "identical bits", "near bits flipped", "max abs error", "relative", "same class"]
    optional = ["near bits flipped", "identical bits", "samples"]
    rows = table(None, ["backend", *(["output"] if named else []), *numbers], numbers, optional=optional)
    for output in result.outputs:
        exact = output.differing is not None
        rows.add_row(
            output.backend,
            *([printable(output.output)] if named else []),
            f"{output.samples:,}",
            f"{output.identical:,}",
            f"{output.flipped:,}",
            f"{output.differing:,} differ" if exact else f"{output.max_error:.2e}",
            "-" if exact else f"{output.relative_error:.1e}",
            "-" if output.same_class is None else f"{output.same_class:,} of {output.samples:,}",
        )
    show(rows)
    show("")
    for failure in result.failures:
        show(f"FAILED: {printable(failure)}", result=True)
    show("PASSED" if result.passed else "FAILED", result=True)


def print_verification(result: Verification) -> None:
    """Print all three parts of a verification, and PASSED or FAILED."""
    kernels = f"{', '.join(result.isas)} (all of them ran, by the library's own count)"
    show(
        facts(
            [
                ("model", result.model),
                ("reference", result.reference),
                ("inputs", f"{plural(result.samples, 'sample')}: {result.data}"),
                ("kernels", kernels if result.isas else "none: the model has binary weights only"),
            ]
        )
    )
    if result.operators:
        _print_operators(result)
    if result.layers:
        _print_layers(result)
    if result.outputs:
        _print_outputs(result)
    if result.classification:
        _print_classes(result)
    notes = [*_source_notes(result), *result.notes]
    show("")
    for note in notes:
        show(f"note: {printable(note)}")
    if notes:
        show("")
    for failure in result.failures:
        show(f"FAILED: {printable(failure)}", result=True)
    passed = "PASSED" if result.complete else "PASSED (outputs only)"
    show(passed if result.passed else "FAILED", result=True)


def _source_notes(result: Verification) -> list[str]:
    """The agreement of the reference with the network as its user runs it."""
    if not result.source:
        return []
    backend, agreement = result.source[0].backend, "; ".join(map(_source_agreement, result.source))
    if result.filled:
        zeros = f"{plural(sum(result.filled.values()), 'weight')} of the source that are exactly 0 ("
        layers = ", ".join(f"{count:,} of {name}" for name, count in result.filled.items())
        return [
            *([_latent_note(result)] if result.replaced else []),
            f"{zeros}{layers}) are \N{PLUS-MINUS SIGN}alpha in reference and model; {backend} with the 0: {agreement}",
        ]
    if not result.replaced:
        return [f"the reference is an export; {backend} itself: {agreement}"]
    return [f"{_latent_note(result)}; {backend} with the latent ones: {agreement}"]


def _latent_note(result: Verification) -> str:
    latent = plural(len(result.replaced), "latent weight")
    return f"{latent} of the source ({', '.join(result.replaced)}) are binary in reference and model"


def _source_agreement(source: OutputResult) -> str:
    which = f"{source.output}: " if source.output else ""
    if source.same_class is None:
        return f"{which}outputs within rounding on {source.close:,} of {source.samples:,} samples"
    return f"{which}the same class on {source.same_class:,} of {source.samples:,} samples"


def _print_operators(result: Verification) -> None:
    backends = list(result.operators[0].differing)
    show("")
    explain("1. Operators: every node alone, on the same inputs, against its function body in onnxruntime.")
    explain("   Tolerance: none, every bit, integer and float must be equal.")
    if any(op.tolerance for op in result.operators):
        explain("   Only a mean of magnitudes may differ, as stated: its terms may be added in any order.")
    if any(op.rounded for op in result.operators):
        explain(
            "   Only sums of n float products may differ, by what another order rounds: 2(n+2)/2^24 of the sum of "
            "their magnitudes; and bits of them, where the sum is so near to its threshold."
        )
    numbers = ["values", *backends]
    rows = table(None, ["node", "operator", *numbers, ""], numbers, optional=["values", *reversed(backends)])
    for op in result.operators:
        cells = [_agreement(op, backend) for backend in op.differing]
        rows.add_row(printable(op.node), op.op_type, f"{op.values:,}", *cells, "ok" if op.passed else "FAILED")
    show(rows)
    explain(f"   The ReferenceEvaluator ran the first {plural(result.reference_samples, 'sample')} only; it is slow.")


def _agreement(operator: OperatorResult, backend: str) -> str:
    """How a backend agrees with the function body in onnxruntime."""
    if operator.differing[backend]:
        return f"{operator.differing[backend]:,} differ"
    if operator.tolerance:
        return f"within {operator.tolerance:.1g}"
    rounded = operator.rounded.get(backend, 0)
    return f"{rounded:,} by rounding" if rounded else "equal"


def _print_layers(result: Verification) -> None:
    tolerance = result.tolerances
    show("")
    explain("2. Layers: each fed with the reference's own activations; the worst over all backends.")
    margin, relative = f"{tolerance.flip_margin:g}", f"{tolerance.float_relative:g}"
    explain(
        f"   Tolerances: a bit may differ where |pre-activation| <= {margin} of its channel's root mean square, "
        f"a float by {relative} of the largest in its channel. Margin and relative error are so measured."
    )
    if any(layer.quantized for layer in result.layers):
        wider = f"{tolerance.quantized_flip_margin:g} and {tolerance.quantized_float_relative:g}"
        explain(f"   For layers with 8-bit weights, marked int8: {wider}.")
    numbers = ["compared", "bits differ", "largest margin", "max abs error", "relative error", "exact zeros"]
    optional = ["exact zeros", "max abs error", "compared"]
    rows = table(None, ["layer", "output", *numbers, ""], numbers, optional=optional)
    for layer in result.layers:
        verdict = "ok" if layer.passed else "FAILED"
        count = f"{layer.values:,}"
        if layer.kind != "floats":
            margin = f"{layer.margin:.1e}" if layer.differing else "-"
            zeros = f"{layer.zeros:,}" if layer.kind == "bits" else ""
            cells = [count, f"{layer.differing:,}", margin, "", "", zeros]
        else:
            cells = [count, "", "", f"{layer.max_error:.2e}", f"{layer.relative_error:.1e}", ""]
        kind = f"{layer.kind}, int8" if layer.quantized else layer.kind
        rows.add_row(printable(layer.layer), kind, *cells, verdict)
    show(rows)
    _print_distances(result)


_DISTANCES = (1024, 128, 8, 1)
"""The parts of the tolerance below which differences are counted: powers of two, where bins of the histograms begin."""


def _print_distances(result: Verification) -> None:
    """How near the differences of all layers come to their tolerances."""
    for what, kinds in (("flipped bits", ("bits", "levels")), ("floats", ("floats",))):
        found = [layer.histogram for layer in result.layers if layer.kind in kinds]
        counts = [0] * (len(_DISTANCES) + 1)
        for histogram in found:
            for edge, count in zip(histogram.edges, histogram.counts, strict=True):
                counts[sum(edge >= histogram.tolerance / divisor for divisor in _DISTANCES)] += count
        counts[0] += sum(histogram.zeros for histogram in found)
        if not sum(counts):
            continue
        bounds = ["1" if divisor == 1 else f"1/{divisor}" for divisor in _DISTANCES]
        shares = [f"{count:,} below {bound}" for count, bound in zip(counts, bounds, strict=False) if count]
        beyond = [f"{counts[-1]:,} beyond"] if counts[-1] else []
        explain(f"   Of all {what}, in units of the tolerance: {', '.join([*shares, *beyond])}.")


def _print_outputs(result: Verification) -> None:
    show("")
    explain("3. Outputs: running free from the input, against the reference's output.")
    labelled = any(output.correct is not None for output in result.outputs)
    named = any(output.output for output in result.outputs)
    numbers = ["samples", "max abs error", "agree", "same class", *(["accuracy", "reference's"] if labelled else [])]
    optional = ["samples", "max abs error"]
    rows = table(None, ["backend", *(["output"] if named else []), *numbers], numbers, optional=optional)
    for output in result.outputs:
        same = "-" if output.same_class is None else f"{output.same_class:,} of {output.samples:,}"
        cells = [f"{output.samples:,}", f"{output.max_error:.2e}", f"{output.agreeing:,}", same]
        name = [printable(output.output)] if named else []
        rows.add_row(output.backend, *name, *cells, *(_accuracies(output) if labelled else []))
    show(rows)
    share = f"{result.tolerances.min_agreement:.0%}"
    explain(f"   A sample agrees with the same class and an error of at most {AGREEING_ERROR:g} standard deviations.")
    explain(f"   Needed: {share} (--min-agreement); one sample may always differ.")
    if result.disagreements:
        show("")
        explain("   Samples that do not agree, and the first layer in which a bit flipped:")
        flips = table(
            None,
            [
                "backend",
                *(["output"] if named else []),
                "sample",
                "reference",
                "model",
                "layer",
                "channel, position",
                "margin",
                "explained",
            ],
            {"sample", "reference", "model", "margin"},
            {"explained"},
            optional=["channel, position", "margin"],
        )
        for d in result.disagreements[:20]:
            where = printable(d.layer) or "none"
            flips.add_row(
                d.backend,
                *([printable(d.output)] if named else []),
                str(d.sample),
                *("-" if which is None else str(which) for which in (d.reference_class, d.model_class)),
                where,
                "" if d.channel is None else ", ".join(map(str, (d.channel, *([[*d.position]] if d.position else [])))),
                "a sign of 0" if d.zero else f"{d.margin:.1e}",
                "yes" if d.explained else "NO",
            )
        show(flips)
        if len(result.disagreements) > 20:
            show(f"   and {len(result.disagreements) - 20} more")


def _print_classes(result: Verification) -> None:
    """The accuracy of the reference and of the model: top-5, and of the classes that the model finds hardest."""
    reference, model = result.classification
    if reference.correct_top5 is not None and model.correct_top5 is not None:
        fives = [percent(one.correct_top5 or 0, one.samples) for one in (reference, model)]
        show("")
        explain(f"   Among the five highest scores: {' of the reference, '.join(fives)} of the model.")
    hardest = sorted(model.classes, key=lambda one: (one.correct / one.samples, one.label))[:_HARDEST]
    before = {one.label: one.correct for one in reference.classes}
    numbers = ["samples", "reference", "model"]
    mistakes = "most often taken for"
    rows = table(None, ["class", *numbers, mistakes], numbers, optional=["samples", mistakes])
    for one in hardest:
        wrong = [(count, -taken) for label, taken, count in model.confusion if label == one.label != taken]
        count, taken = max(wrong, default=(0, 0))
        mistaken = f"{_class_name(result, -taken)} ({count:,} of {one.samples:,})" if wrong else ""
        shares = (percent(correct, one.samples) for correct in (before[one.label], one.correct))
        rows.add_row(_class_name(result, one.label), f"{one.samples:,}", *shares, mistaken)
    some = f"The {len(hardest)} least accurate of {len(model.classes)} classes"
    which = some if len(model.classes) > len(hardest) else "Classes, the least accurate first"
    show("")
    explain(f"   {which}; the confusion matrices are in the JSON:")
    show(rows)


_HARDEST = 5
"""Classes in the table of accuracies."""


def _class_name(result: Verification, label: int) -> str:
    names = result.class_names
    return printable(names[label]) if 0 <= label < len(names) else str(label)


def _accuracies(output: OutputResult) -> list[str]:
    return [
        "" if count is None else percent(count, output.samples) for count in (output.correct, output.reference_correct)
    ]
