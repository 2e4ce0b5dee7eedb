"""OHIF as MONAI Label 0.8.5 brings it; what does not work is mended while it is served, its files stay as they are."""

from __future__ import annotations

import functools
import logging
import re
from pathlib import Path

logger = logging.getLogger(__name__)

_FONTS = re.compile(
    r"<link [^>]*fonts\.(?:googleapis|gstatic)\.com[^>]*>|@import url\(https://fonts\.googleapis\.com[^)]*\);"
)
_PLUGIN = "class MonaiLabelClient {"  # only the script of MONAI Label's panel has it
_PLUGIN_BYTES = 2**19  # more than that script has


def _bar(percent: str, colour: str) -> tuple[str, str]:
    """One of the panel's bars, whose words are white on white, and which are as long at 1 % as at 99 %."""
    end = f"\n      }}\n    }}, {percent})"
    filled = f"background: `linear-gradient(to right, {colour} ${{{percent}}}, white ${{{percent}}})`, color: 'black'"
    return f"backgroundColor: 'white'{end}", filled + end


# Of the panel: what stands there, and what is served in its place.
MENDED = {
    **dict([_bar("activelearning", "skyblue"), _bar("training", "orange"), _bar("accuracy", "lightgreen")]),
    # A failed request is said to have failed, and not why.
    _PLUGIN: """const whyFailed = reply => {
  let said = reply.response?.data;
  try {
    if (said instanceof ArrayBuffer) said = JSON.parse(new TextDecoder().decode(said));
  } catch {}
  return ': ' + (reply.why ?? said?.detail ?? reply.message ?? reply.status);
};
class MonaiLabelClient {""",
    "message: 'Failed to Run Inference for Point Prompts'": (
        "message: 'Failed to Run Inference for Point Prompts' + whyFailed(response)"
    ),
    "message: 'Failed to Fetch Next Sample'": "message: 'Failed to Fetch Next Sample' + whyFailed(response)",
    "message: 'Failed to ' + (training ? 'STOP' : 'RUN') + ' training'": (
        "message: 'Failed to ' + (training ? 'STOP' : 'RUN') + ' training' + whyFailed(response)"
    ),
    # Where no scan is left it offers to open the study "undefined".
    "const response = await this.props.client().next_sample(strategy, params);": """\
const sample = await this.props.client().next_sample(strategy, params);
      const response = sample.status === 200 && !sample.data.id ? { why: sample.data.reason } : sample;""",
    # The list of strategies changes nothing: "random" is asked for whatever it says.
    "onChange: this.onChangeStrategy": "onChange: event => this.setState({ strategy: event.target.value })",
    # The progress of a training, and its end, are seen only by whoever connects again.
    "const training = await this.props.client().is_train_running();": """\
let watched = false;
    const timer = setInterval(async () => {
      if (!this.state.training && !watched) return;
      watched = this.state.training;
      const training = watched && await this.props.client().is_train_running();
      const found = await this.props.client().info();
      if (found.status !== 200) return;
      const { datastore, train_stats } = found.data;
      Object.assign(this.props.info.data, { datastore, train_stats });
      this.setState(training || !watched ? {} : { training: false });
      watched = Object.values(train_stats).some(one => one.state && !one.total_time);
    }, 3000);
    this.componentWillUnmount = () => clearInterval(timer);
    const training = await this.props.client().is_train_running();""",
    # Before its first epoch, and where there never was one, a training looks like one at its end.
    "const epochs = ts ? ts.total_time ? 0 : ts.epoch ? ts.epoch : 1 : 0;": (
        "const epochs = ts && !ts.total_time && ts.epoch || 0;"
    ),
    "' epochs completed' : 'Not Running';": (
        "' epochs completed' : this.state.training ? ts && !ts.total_time && ts.state || 'starting' : 'Not Running';"
    ),
    # It looks for the server at port 8000, or where a server on the same host was found the last time.
    "CookieUtils.getCookieString('MONAILABEL_SERVER_URL', "
    "'http://' + window.location.host.split(':')[0] + ':8000/')": "window.location.origin + '/'",
    # Clicks are put among the options, and sent again with every later request, also when they were cleared.
    "config.infer[model] ? config.infer[model] : {}": "config.infer[model] ? { ...config.infer[model] } : {}",
}


@functools.lru_cache(maxsize=64)
def without_fonts(path: Path) -> str:
    """A page or style sheet that asks no other host for fonts: not every hospital has a way out, or wants one."""
    return _FONTS.sub("", path.read_text(encoding="utf-8"))


@functools.lru_cache(maxsize=256)
def mended_script(path: Path) -> str | None:
    """The script of MONAI Label's panel, mended; None where `path` is any other script of OHIF."""
    if path.stat().st_size > _PLUGIN_BYTES:
        return None
    text = path.read_text(encoding="utf-8")
    if _PLUGIN not in text:
        return None
    for old, new in MENDED.items():
        if old not in text:
            logger.warning("OHIF's panel is another one than expected, and served without a change to %r", old)
        text = text.replace(old, new)
    return text
