// Whose clicks the server is asked about next. One request at a time: the network of the server takes one anyway.

const AGAIN_MS = 700; // between two questions about a structure that goes on spreading

/**
 * Keeps the masks of structures up to their clicks, and asks again for what goes on spreading.
 *
 * `segment(structure, signal)` gives the server's answer; `apply(structure, answer, seconds)` takes one that is still
 * of the present clicks, null where there are no positive ones; `failed(structure, error)`; `changed()` when it begins,
 * ends, or something spreads.
 */
export class Work {
  constructor({ segment, apply, failed, changed }) {
    Object.assign(this, { segment, apply, failed, changed });
    this.states = new Map(); // structure: { wanted, done, spreading, due }
    this.running = null;
    this.stopping = new AbortController();
    this.waiting = []; // for `settled`
  }

  /** The clicks of a structure have changed. */
  ask(structure) {
    const state = this.#state(structure);
    state.wanted++;
    state.spreading = false;
    this.#wake();
  }

  /** Forgets everything, as another study is opened. */
  stop() {
    this.stopping.abort();
    this.stopping = new AbortController();
    this.states.clear();
    this.running = null;
    this.#release();
    this.changed();
  }

  forget(structure) {
    this.states.delete(structure);
    this.changed();
  }

  /** Whether an answer to a click is waited for. */
  get busy() {
    return [...this.states.values()].some((state) => state.done !== state.wanted);
  }

  get spreading() {
    return [...this.states].filter(([, state]) => state.spreading).map(([structure]) => structure);
  }

  /** When every click has its answer. */
  settled() {
    return this.busy ? new Promise((resolve) => this.waiting.push(resolve)) : Promise.resolve();
  }

  #state(structure) {
    if (!this.states.has(structure)) this.states.set(structure, { wanted: 0, done: 0, spreading: false, due: 0 });
    return this.states.get(structure);
  }

  #wake() {
    clearTimeout(this.timer);
    if (this.running) return;
    const entries = [...this.states];
    const clicked = entries.findLast(([, state]) => state.done !== state.wanted);
    const spreading = entries.filter(([, state]) => state.spreading).sort((a, b) => a[1].due - b[1].due)[0];
    if (clicked) this.#run(...clicked);
    else if (spreading && spreading[1].due <= Date.now()) this.#run(...spreading);
    else if (spreading) this.timer = setTimeout(() => this.#wake(), spreading[1].due - Date.now());
    if (!this.busy) this.#release();
    this.changed();
  }

  async #run(structure, state) {
    const { signal } = this.stopping;
    const version = state.wanted;
    const begin = performance.now();
    this.running = structure;
    try {
      const answer = structure.positive().length ? await this.segment(structure, signal) : null;
      if (signal.aborted) return;
      state.done = version;
      if (this.states.get(structure) === state && version === state.wanted) {
        state.spreading = answer?.reply.expansion?.[structure.name]?.ended === "time budget";
        state.due = Date.now() + AGAIN_MS;
        this.apply(structure, answer, (performance.now() - begin) / 1000);
      }
    } catch (error) {
      if (signal.aborted) return;
      Object.assign(state, { done: state.wanted, spreading: false });
      this.failed(structure, error);
    } finally {
      if (!signal.aborted) {
        this.running = null;
        queueMicrotask(() => this.#wake());
      }
    }
  }

  #release() {
    for (const resolve of this.waiting.splice(0)) resolve();
  }
}
