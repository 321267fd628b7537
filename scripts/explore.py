"""A page on which a heart answers while one moves its sliders, served by Gradio on this machine alone.

Nothing leaves the machine: telemetry is off, the page has no fonts or scripts from elsewhere, and tells the browser to
refuse any. No picture is written to a file. Needs the extra ``explore``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from scripts.cohort.attributes import UNITS
from scripts.cohort.datalist import load_items
from scripts.counterfactual import ALL_ELSE_EQUAL, KINDS, RequestError, is_number
from scripts.figures import attribute_name
from scripts.inference.answers import far_sentence, judged, missed_sentence
from scripts.live_hearts import LiveHearts

if TYPE_CHECKING:
    import gradio

HOST = "127.0.0.1"
SUBJECT, SAMPLE = "subject of the datalist", "sample of the prior"
NO_SCAN = "A sample of the prior has no scan."
# The browser asks no other host, whatever a version of Gradio may put into its page.
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; form-action 'self'; frame-ancestors 'self'"
FONTS = ("system-ui", "sans-serif")
STYLE = """
.hearts { display: grid; grid-template-columns: repeat(auto-fit, minmax(var(--least), 1fr)); gap: 8px; padding: 8px;
  border-radius: 8px; background: #0b0c0e; }
.hearts figure { margin: 0; }
.hearts figcaption { color: #e9ebee !important; font-weight: 600; }
.hearts svg { display: block; width: 100%; background: #000; }
table.values { border-collapse: collapse; font-variant-numeric: tabular-nums; }
table.values th, table.values td { padding: 2px 12px 2px 0; text-align: right; }
table.values th:first-child { text-align: left; }
"""
NOTE = (
    "Research only, not for diagnosis. A slider asks the heart for a volume; the other sliders show what the drawn "
    "heart has then, by the model's own account. **Keep** makes the drawn heart the one that is asked next."
)


def subjects_of(
    datalist: str | os.PathLike | None, dataset_dir: str | os.PathLike, section: str | None
) -> list[dict[str, Any]]:
    """The subjects to choose from: those of a datalist, or none without one."""
    return load_items(datalist, dataset_dir, section) if datalist else []


def gradio_module() -> Any:
    """Gradio, with its telemetry off.

    Raises:
        ImportError: where it is not installed, saying how.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError as error:
        raise ImportError("'run explore' needs Gradio: pip install '.[explore]', or gradio.") from error
    return gradio


class Explorer:
    """The page.

    Args:
        hearts: what it shows.
    """

    def __init__(self, hearts: LiveHearts) -> None:
        self.hearts, self.gradio = hearts, gradio_module()
        self.blocks = self.build()

    def launch(self, port: int | None = None, block: bool = True) -> str:
        """Serve the page, until it is stopped where ``block`` is set.

        Args:
            port: None takes the first free one from 7860 on.
            block: wait.

        Returns:
            The address.

        Raises:
            OSError: when the port is taken.
        """
        from starlette.middleware import Middleware

        theme = self.gradio.themes.Base(font=FONTS, font_mono=("ui-monospace", "monospace"))
        self.blocks.launch(
            **{"server_name": HOST, "server_port": port, "share": False, "quiet": True, "prevent_thread_lock": True},
            **{"footer_links": [], "run_history": False, "ssr_mode": False, "theme": theme, "css": STYLE},
            app_kwargs={"middleware": [Middleware(ContentPolicy)]},
        )
        print(f"Explore at {self.blocks.local_url} (Ctrl+C stops)", flush=True)
        if block:
            self.blocks.block_thread()
        return self.blocks.local_url

    # What happens on the page. A heart travels as the list of its code.

    def choose(self, source: str, number: float | None, outlines: bool, difference: bool) -> list[Any]:
        """Take another heart: what to know of it, its scan, and all that ``keep`` gives."""
        notes, scan = [], NO_SCAN
        try:
            number = whole(number)
            if source == SUBJECT:
                code, image, notes = self.hearts.subject(number)
                scan = self.hearts.picture(image, image, outlines=True, difference=False)
            else:
                code = self.hearts.sample(number)
        except ValueError as error:
            raise self.gradio.Error(str(error)) from error
        return [warnings(notes), scan, *self.keep(code.tolist(), outlines, difference)]

    def keep(self, code: list, outlines: bool, difference: bool) -> list[Any]:
        """Make a heart the one that is asked: its code twice, sliders, picture, table and message."""
        values = self.hearts.values(self.tensor(code))
        sliders = [round(values[name]) for name in self.hearts.names]
        picture = self.redraw(code, code, outlines, difference)
        return [code, code, *sliders, picture, self.hearts.table(values, values), ""]

    def ask(
        self, name: str, value: float, base: list, code: list, kind: str, outlines: bool, difference: bool
    ) -> list[Any]:
        """Ask the base heart for a value: the new code, the other sliders, picture, table and message."""
        begin = time.perf_counter()
        try:
            if not is_number(value) or not base:
                raise RequestError("choose a heart, and ask it for a number.")
            start = self.tensor(base)
            changed = self.hearts.ask(start, name, value, kind)
        except RequestError as error:
            return [*[self.gradio.skip()] * (len(self.hearts.names) + 2), f"Refused: {error}"]
        before, now = self.hearts.values(start), self.hearts.values(changed)
        others = [round(now[other]) for other in self.hearts.names if other != name]
        picture = self.redraw(base, changed.tolist(), outlines, difference)
        moved = self.hearts.counterfactuals.distance(start, changed).item()
        wanted = judged(before | {name: value}, name, kind)
        cautions = filter(None, (missed_sentence(now, wanted), far_sentence(moved)))
        message = (
            f"{attribute_name(name)}: {value:.0f} {UNITS.get(name, '')} asked, {now[name]:.0f} by its own account. "
            f"Found and drawn in {1000 * (time.perf_counter() - begin):.0f} ms."
        ) + "".join(f"\n\n**{caution}**" for caution in cautions)
        return [changed.tolist(), *others, picture, self.hearts.table(before, now), message]

    def redraw(self, base: list, code: list, outlines: bool, difference: bool) -> str:
        """The picture of a heart, compared with the one that was asked."""
        images = [self.hearts.decode(self.tensor(each)) for each in (code, base)]
        return self.hearts.picture(*images, outlines, difference)

    def tensor(self, code: Sequence[Sequence[float]]) -> torch.Tensor:
        """A code as a tensor (1, D)."""
        return torch.tensor(code, device=self.hearts.device)

    # What is on it

    def build(self) -> gradio.Blocks:
        """All components, and what they do."""
        with self.gradio.Blocks(title="Explore hearts", analytics_enabled=False) as blocks:
            parts = self.components()
            self.connect(blocks, parts)
        return blocks

    def components(self) -> dict[str, Any]:
        """Sliders on the left, the heart on the right."""
        gr, names = self.gradio, self.hearts.names
        population = self.hearts.counterfactuals.population
        parts: dict[str, Any] = {"base": gr.State([]), "code": gr.State([])}
        gr.Markdown(f"# Change a heart\n\n{NOTE}\n\n{warnings(self.hearts.calibration.cautions())}")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                sources = [SUBJECT, SAMPLE] if self.hearts.items else [SAMPLE]
                parts["source"] = gr.Radio(sources, value=sources[0], label="Heart")
                places = f"subject: its place in the datalist, 1 to {len(self.hearts.items)}; sample: "
                label = f"Number ({places if self.hearts.items else ''}any)"
                parts["number"] = gr.Number(1, label=label, precision=0, minimum=0)
                kinds = [(label, key) for key, label in KINDS.items()]
                parts["kind"] = gr.Radio(kinds, value=ALL_ELSE_EQUAL, label="What else may change")
                limits = zip(names, population.low, population.high, strict=True)
                parts["sliders"] = [
                    gr.Slider(
                        low,
                        high,
                        step=1,
                        label=f"{attribute_name(name)}, {UNITS.get(name, '')}",
                        elem_id=name,
                        buttons=[],
                    )
                    for name, low, high in limits
                ]
                with gr.Row():
                    parts["reset"], parts["keep"] = gr.Button("Back"), gr.Button("Keep")
            with gr.Column(scale=3, min_width=340):
                parts["notes"] = gr.Markdown(elem_id="notes")
                parts["picture"] = gr.HTML(elem_id="picture")
                with gr.Row():
                    mapped = bool(self.hearts.view.mapped)
                    parts["outlines"] = gr.Checkbox(mapped, label="contours", visible=mapped)
                    parts["difference"] = gr.Checkbox(False, label="difference (yellow: brighter, blue: darker)")
                parts["message"] = gr.Markdown(elem_id="message")
                parts["table"] = gr.HTML()
                with gr.Accordion("Scan of the subject", open=False, visible=bool(self.hearts.items)):
                    parts["scan"] = gr.HTML(elem_id="scan")
        return parts

    def connect(self, blocks: gradio.Blocks, parts: Mapping[str, Any]) -> None:
        """What each component does. All use one network, one after the other; of many moves only the last counts."""
        shown = [parts["outlines"], parts["difference"]]
        whole = [parts["base"], parts["code"], *parts["sliders"], parts["picture"], parts["table"], parts["message"]]
        way = {"concurrency_id": "network", "concurrency_limit": 1, "show_progress": "hidden"}
        last = {**way, "trigger_mode": "always_last"}  # by default, Gradio drops what comes while it is busy
        chosen = {"fn": self.choose, "inputs": [parts["source"], parts["number"], *shown], **last}
        chosen["outputs"] = [parts["notes"], parts["scan"], *whole]
        blocks.load(**chosen, api_name="load")
        parts["source"].input(**chosen, api_name="choose")
        parts["number"].input(**chosen, api_name=False)
        for button, heart in (("reset", "base"), ("keep", "code")):
            parts[button].click(self.keep, [parts[heart], *shown], whole, **way, api_name=button)
        for each in shown:
            each.input(self.redraw, [parts["base"], parts["code"], *shown], parts["picture"], **last, api_name=False)
        for slider, name in zip(parts["sliders"], self.hearts.names, strict=True):
            others = [other for other in parts["sliders"] if other is not slider]
            slider.input(
                lambda *values, name=name: self.ask(name, *values),
                [slider, parts["base"], parts["code"], parts["kind"], *shown],
                [parts["code"], *others, parts["picture"], parts["table"], parts["message"]],
                **last,
                api_name=f"ask_{name}",
            )


def whole(number: float | None) -> int:
    """A number as whole; 0 for none. ValueError for one that is none."""
    if number is not None and not is_number(number):
        raise ValueError(f"{number} is the number of no heart.")
    return int(number or 0)


def warnings(sentences: Sequence[str]) -> str:
    """What is wrong, in Markdown."""
    return "\n\n".join(f"**{sentence}**" for sentence in sentences)


class ContentPolicy:
    """Tell the browser with each answer which hosts it may ask: this one.

    Args:
        app: that answers.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        async def send_with_policy(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message["headers"], (b"content-security-policy", POLICY.encode())]}
            await send(message)

        await self.app(scope, receive, send_with_policy)
