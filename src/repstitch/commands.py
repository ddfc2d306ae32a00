"""What each command does: one function a command, results on stdout."""

import json
import sys
from pathlib import Path

from repstitch.errors import InputError, check_draws, check_seed, one_line
from repstitch.names import METRICS, USES


def run_embed(args) -> None:
    from repstitch.encoders import embed

    settings = {name: getattr(args, name) for name in CARD_SETTINGS if getattr(args, name) is not None}
    if args.model_args is not None:
        settings["model_args"] = _json_object(args.model_args, "--model-args")
    rows = embed(
        args.encoder,
        args.data,
        args.out,
        batch_size=args.batch_size,
        device=args.device,
        precision=args.precision,
        dtype=args.dtype,
        layers=_layers(args.layers),
        **settings,
    )
    _emit({"out": args.out, "rows": rows}, f"{rows} rows in {args.out}", args.json)


def run_train(args) -> None:
    from repstitch.stitchers.stitcher import check_out

    check_out(args.out)
    shares = _shares(args.split)
    if args.learning_curve:
        from repstitch.plots.canvas import check_picture

        check_picture(args.learning_curve, "learning_curve")
    from repstitch.evaluation.report import table
    from repstitch.train import train

    recipe = {
        name: getattr(args, name)
        for name in ("epochs", "width", "batch_size", "learning_rate", "strategy", "checkpoints")
        if getattr(args, name) is not None
    }
    if args.devices is not None:
        recipe["devices"] = int(args.devices) if args.devices.isdecimal() else args.devices
    stitcher = train(
        args.source,
        args.target,
        method=args.method,
        objective=args.objective,
        split_shares=shares,
        split_seed=args.split_seed,
        seed=args.seed,
        group=args.group,
        drop_invalid=args.drop_invalid,
        refit_on_all=args.refit,
        source_space=args.source_space,
        target_space=args.target_space,
        source_ids=args.source_ids,
        target_ids=args.target_ids,
        output_norm=args.output_norm,
        device=args.device,
        learning_curve=args.learning_curve is not None,
        labels=args.labels,
        retention=args.retention,
        first_stage=args.first_stage,
        **recipe,
    )
    stitcher.save(args.out)
    curve = stitcher.scorecard.get("learning_curve")
    if curve:
        from repstitch.plots.canvas import save
        from repstitch.plots.stitchers import plot_curve

        save(plot_curve(curve), args.learning_curve)
    result = {
        "out": args.out,
        "version": stitcher.version,
        "source": stitcher.source.name,
        "target": stitcher.target.name,
        "method": stitcher.method,
        "objective": stitcher.objective,
        "scorecard": stitcher.scorecard,
    }
    title = f"{stitcher.source.name} -> {stitcher.target.name}, {stitcher.method}, in {args.out}"
    told = f"\n\nlearning curve, in {args.learning_curve}: {curve['verdict']}" if curve else ""
    _emit(result, f"{title}\n\n{table(stitcher.scorecard)}{told}", args.json)


def run_score(args) -> None:
    from repstitch.apply import score
    from repstitch.evaluation.report import table
    from repstitch.stitchers.stitcher import load

    card = score(
        load(args.stitcher),
        args.source,
        args.target,
        uses=USES if args.use == "both" else (args.use,),
        source_space=args.source_space,
        target_space=args.target_space,
        source_ids=args.source_ids,
        target_ids=args.target_ids,
        drop_invalid=args.drop_invalid,
        source_queries=args.source_queries,
        target_queries=args.target_queries,
        qrels=args.qrels,
        source_query_ids=args.source_query_ids,
        target_query_ids=args.target_query_ids,
        labels=args.labels,
        retention=args.retention,
        first_stage=args.first_stage,
    )
    note = f"{card['left_out']} pairs left out: the stitcher was trained on them.\n\n" if card["left_out"] else ""
    _emit(card, note + table(card), args.json)


def run_translate(args) -> None:
    from repstitch.apply import translate_file
    from repstitch.devices import pick_device
    from repstitch.stitchers.stitcher import load

    stitcher = load(args.stitcher).to(pick_device(args.device))
    rows = translate_file(
        stitcher,
        args.embeddings,
        args.out,
        source_space=args.source_space,
        ids=args.ids,
        dtype=args.dtype,
        confidence=args.confidence,
    )
    said = f"{rows} rows of {stitcher.source.name} translated to {stitcher.target.name} in {args.out}"
    _emit({"out": args.out, "rows": rows, "stitcher": stitcher.version}, said, args.json)


def run_transfer(args) -> None:
    _check_transfer(args)
    from repstitch.stitchers.stitcher import load
    from repstitch.transfer import files, job
    from repstitch.transfer.bridge import build
    from repstitch.transfer.kinds import Dictionary, Directions, Probe, name_of
    from repstitch.transfer.report import report

    thing, layout = None, files.Layout()
    if args.given:
        classes = None if args.classes is None else _lines(args.classes, "classes")
        thing, layout = files.read(
            args.given, subtract_b_dec=args.subtract_b_dec, classes=classes, directions=args.directions
        )
    if args.out:
        means = args.concept and args.by != "classifier"
        files.check_out(args.out, type(thing) if thing is not None else Directions if means else Probe)
    forward, backward = (None if given is None else load(given) for given in (args.forward, args.backward))
    bridge = build(
        forward,
        backward,
        args.source,
        args.target,
        args.labels,
        source_space=args.source_space,
        target_space=args.target_space,
        source_ids=args.source_ids,
        target_ids=args.target_ids,
        group=args.group,
        paired=isinstance(thing, Dictionary),
        drop_invalid=args.drop_invalid,
        tangent=args.jacobian,
    )
    if args.prompts:
        carried, found = job.from_names(bridge, args.prompts, args.names, seed=args.seed)
        how = f"{job.NAMES_HOW}; {job.rows_meant(bridge, 'forward')}"
    else:
        if args.concept:
            thing = job.concept_of(bridge, args.concept, args.against, args.by)
        thing, found = job.prove_thing(bridge, thing, seed=args.seed)
        carried, how = job.transfer(thing, bridge, args.renormalise)
    if not args.out and not found:
        raise InputError("Give `--out`, the file to write; there is nothing to prove this on.")
    notes = {"through": how} | {
        way: stitcher.version for way, stitcher in (("forward", forward), ("backward", backward)) if stitcher
    }
    if args.plot:  # before what is never overwritten, so that a run that was stopped can be run again
        from repstitch.plots.canvas import save
        from repstitch.plots.transfers import plot_transfer

        save(plot_transfer(found), args.plot)
    if args.out:
        files.write(args.out, carried, layout, notes)
    title = f"{name_of(carried)}: {bridge.home.name} -> {bridge.away.name}" + (f", in {args.out}" if args.out else "")
    _emit(
        {"out": args.out, "carried": name_of(carried), **notes, "proof": found or None},
        "\n".join([title, *how.split("; ")]) + (f"\n\n{report(found)}" if found else ""),
        args.json,
    )


def _check_transfer(args) -> None:
    """Refuse what does not go together before anything is loaded."""
    check_seed(args.seed, "`--seed`")
    given = [name for name in ("given", "concept", "prompts") if getattr(args, name)]
    if len(given) > 1:
        raise InputError("Give one thing to carry: a FILE, or --concept with --against, or --prompts.")
    if not given and not args.labels:
        raise InputError(
            "Give what is carried: a FILE, --concept with --against, --prompts, or --labels to train a probe by."
        )
    for flag, needs, ok in (
        ("against", "--concept", args.concept),
        ("by", "--concept", args.concept),
        ("names", "--prompts", args.prompts),
        ("classes", "a probe's FILE", args.given),
        ("subtract_b_dec", "a dictionary's FILE", args.given),
        ("directions", "a FILE", args.given),
        ("renormalise", "a FILE or --concept", args.given or args.concept),
        ("plot", "--labels", args.labels),
        ("labels", "--target", args.target),
        ("group", "--labels, or a dictionary's FILE and rows", args.labels or args.given),
        ("jacobian", "--source or --target", args.source or args.target),
        ("source_space", "--source", args.source),
        ("source_ids", "--source", args.source),
        ("target_space", "--target", args.target),
        ("target_ids", "--target", args.target),
        ("drop_invalid", "--source or --target", args.source or args.target),
    ):
        if getattr(args, flag) not in (None, False) and not ok:
            raise InputError(
                f"`--{flag.replace('_', '-')}` is of use with {needs} only; give that too, or leave it out."
            )
    for flag in ("backward", "source", "jacobian") if args.prompts else ():
        if getattr(args, flag):
            raise InputError(f"`--{flag}` has no part in what --prompts does; leave it out.")
    if args.concept and not args.against:
        raise InputError("`--concept` needs `--against`: embeddings of examples that do not show the concept.")
    if args.out:
        from repstitch.transfer.files import check_out

        check_out(args.out)
    if args.plot:
        from repstitch.plots.canvas import check_picture

        check_picture(args.plot)


def _lines(path: str, flag: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`--{flag}` {path} cannot be read: {one_line(error)}") from None


def run_align(args) -> None:
    metrics, sizes = _metrics(args.metric), _sizes(args.sizes)
    check_draws(args.permutations, "`--permutations`")
    check_seed(args.seed, "`--seed`")
    against = None if args.against is None else _names(args.against, "against")
    control = [] if args.control is None else _names(args.control, "control")
    if len(args.embeddings) < 2:
        raise InputError("Give at least two files of embeddings to align.")
    for flag, needs, ok in (
        ("against", "--trend", args.trend),
        ("table", "--trend or --control", args.trend or control),
    ):
        if getattr(args, flag) and not ok:
            raise InputError(f"`--{flag}` is of use with {needs} only; give that too.")
    if args.out:
        from repstitch.stitchers.stitcher import check_out

        check_out(args.out, "an atlas")
    if args.plot:
        _check_plot(args.plot)
    from repstitch import atlas_files, questions
    from repstitch.atlas import atlas
    from repstitch.embeddings.matching import match
    from repstitch.embeddings.reading import read
    from repstitch.lineage import read_models

    rows = match([read(path) for path in args.embeddings], args.drop_invalid)
    asked = questions.Questions(
        args.trend,
        against,
        control,
        args.asymmetry,
        read_models(args.table) if args.table else None,
        args.seed,
    )
    questions.check(rows.spaces, asked)
    found = atlas(
        rows, metrics, args.k, args.permutations, args.seed, sizes=sizes, cache=args.cache, device=args.device
    )
    found |= questions.answer(found, asked, rows)
    text = atlas_files.table(found)
    if args.out:
        atlas_files.write(found, args.out)
        text += f"\n\natlas.json, pairs.csv and pairs.parquet in {args.out}"
    if args.plot:
        _draw(found, args.plot)
    _emit(found, text, args.json)


def _check_plot(plot: str) -> None:
    from repstitch.plots.canvas import check_picture

    if Path(plot).suffix:
        check_picture(plot)
    elif Path(plot).is_file() or not Path(plot).parent.is_dir():
        raise InputError(f"`--plot` must be a picture's name or a folder, in a folder that exists; got {plot!r}.")


def _draw(found: dict, plot: str) -> None:
    """All pictures to a folder; to a file the one of what was asked for, else the matrix of scores."""
    from repstitch.plots.atlases import draw_atlas, plot_atlas
    from repstitch.plots.canvas import save

    if not Path(plot).suffix:
        Path(plot).mkdir(exist_ok=True)
        draw_atlas(found, plot)
        return
    pictures = plot_atlas(found)
    asked = [name for kind in ("trend", "sizes", "asymmetry", "layers") for name in pictures if name.startswith(kind)]
    save(pictures[(asked or list(pictures))[0]], plot)


def _names(text: str, flag: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise InputError(f"`--{flag}` must be names with commas between them; got {text!r}.")
    return names


def _metrics(text: str) -> list[str] | str:
    if text == "all":
        return text
    metrics = _names(text, "metric")
    unknown = [m for m in metrics if m not in METRICS]
    if unknown:
        raise InputError(f"`--metric` must be all or among {', '.join(METRICS)}; got {unknown[0]!r}.")
    return metrics


def _sizes(text: str | None) -> list[int] | str | None:
    if text is None or text == "auto":
        return text
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        raise InputError(f"`--sizes` must be auto or numbers of rows like 64,256,1024; got {text!r}.") from None


def run_list(args) -> None:
    from repstitch.stitchers.routing import pair_key

    registry = _registry(args.stitchers)
    state = registry.state
    rows = [
        {
            "name": name,
            "source": s.source.name,
            "target": s.target.name,
            "dims": [s.source.dim, s.target.dim],
            "method": s.method,
            "version": s.version,
            "promoted": state.promoted.get(pair_key(s.source.name, s.target.name)) == name,
            "recall@1": s.scorecard.get("query", {}).get("recall@1"),
        }
        for name, s in state.stitchers.items()
    ]
    lines = [
        f"{r['name']}{' *' if r['promoted'] else ''}: "
        f"{r['source']} ({r['dims'][0]}) -> {r['target']} ({r['dims'][1]}), "
        f"{r['method']}, version {r['version']}"
        + (f", recall@1 {r['recall@1']:.3f}" if r["recall@1"] is not None else "")
        for r in rows
    ]
    for problem in state.problems.values():
        print(problem, file=sys.stderr)
    text = "\n".join(lines) or f"No stitchers in {registry.folder}."
    _emit({"folder": str(registry.folder), "stitchers": rows, "problems": dict(state.problems)}, text, args.json)


def run_promote(args) -> None:
    pair = _registry(args.stitchers).promote(args.name)
    _emit({"pair": pair, "promoted": args.name}, f"{pair} is now served by {args.name}", args.json)


def run_show(args) -> None:
    from repstitch.evaluation.report import table
    from repstitch.stitchers.stitcher import load

    path = Path(args.stitcher)
    stitcher = load(path) if path.is_dir() else _registry(args.stitchers).get(args.stitcher)
    if args.plot:
        from repstitch.plots.canvas import save
        from repstitch.plots.stitchers import plot_scorecard

        save(plot_scorecard(stitcher.scorecard, f"{stitcher.source.name} → {stitcher.target.name}"), args.plot)
    title = f"{stitcher.source.name} ({stitcher.source.dim}) -> {stitcher.target.name} ({stitcher.target.dim})"
    made = f"{stitcher.method} for {stitcher.objective}, version {stitcher.version}"
    result = {
        "source": stitcher.source.to_dict(),
        "target": stitcher.target.to_dict(),
        "method": stitcher.method,
        "objective": stitcher.objective,
        "settings": stitcher.settings,
        "version": stitcher.version,
        "provenance": stitcher.provenance,
        "scorecard": stitcher.scorecard,
    }
    scores = table(stitcher.scorecard) if stitcher.scorecard else "no scorecard"
    _emit(result, f"{title}\n{made}\n\n{scores}", args.json)


def run_serve(args) -> None:
    from repstitch.server.run import serve

    serve(args.stitchers, args.host, args.port, args.workers, args.engine)


def run_demo(args) -> None:
    from repstitch.demo import demo

    demo(Path(args.out), seed=args.seed)


def run_study(args) -> None:
    from repstitch.study import run, summary

    results = run(
        args.study,
        args.out,
        data=args.data,
        only=args.only,
        skip_missing=args.skip_missing,
        batch_size=args.batch_size,
        device=args.device,
    )
    _emit(results, summary(results), args.json)


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(share) for share in text.split(","))
    except ValueError:
        raise InputError(f"`--split` must be three shares like 0.6,0.15,0.25; got {text!r}.") from None


def _layers(text: str | None) -> str | list[int] | None:
    if text is None or text == "all":
        return text
    try:
        return [int(layer) for layer in text.split(",")]
    except ValueError:
        raise InputError(f"`--layers` must be all, or numbers like 1,6,12; got {text!r}.") from None


def _json_object(text: str, flag: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"`{flag}` must be a JSON object; got {text!r}.")
    return value


def _registry(folder: str | None):
    from repstitch.stitchers.registry import Registry

    registry = Registry(folder)
    if not registry.folder.is_dir():
        raise InputError(f"There is no folder {registry.folder}; give the stitchers' folder with --stitchers.")
    registry.refresh()
    return registry


def _emit(result: dict, text: str, as_json: bool) -> None:
    print(json.dumps(result, ensure_ascii=False) if as_json else text)


CARD_SETTINGS = (
    "name",
    "pooling",
    "layer",
    "role",
    "prompt",
    "normalise",
    "skip_first",
    "max_length",
    "input_size",
    "checkpoint",
    "architecture",
)
