"use strict";
// Shows the rows of the data island. What a run's files hold gets onto the page as text nodes only.
(() => {
  const ROW = 72, SPARE = 6; // pixels of a row; rows drawn above and below what is seen
  const $ = (id) => document.getElementById(id);
  const island = $("data"), data = JSON.parse(island.textContent);
  const list = $("list"), room = $("room"), detail = $("detail"), form = $("filters");
  let found = [], chosen = -1, waiting = 0; // waiting: the timer of a filter that was typed and is not applied yet

  const make = (tag, name, ...inside) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...inside.filter((one) => one !== null && one !== undefined && one !== ""));
    return element;
  };
  const text = (value, tag = "div") => {
    const element = make(tag, "text");
    element.dir = "auto";
    element.textContent = value;
    return element;
  };
  const picture = (part) => {
    const image = make("img", "media");
    image.alt = part.kind;
    image.src = data.pictures[part.picture];
    return image;
  };
  const player = (part) => {
    const sound = make("audio", "media");
    sound.controls = true;
    sound.preload = "metadata";
    sound.src = data.sounds[part.sound];
    return sound;
  };
  const number = (value) => (Number.isInteger(value) ? String(value) : value.toFixed(2));

  // ---- what is known of a row before it is drawn

  const words = (parts) => (parts || []).map((part) => (typeof part === "string" ? part : part.text || "")).join(" ");
  for (const row of data.rows) {
    row.candidates ||= [];
    row.candidates.forEach((one, index) => { one.number = index + 1; });
    row.candidates.sort((a, b) => (b.score ?? -Infinity) - (a.score ?? -Infinity) || 0);
    const scores = row.candidates.filter((one) => one.score !== undefined).map((one) => one.score);
    row.best = scores.length ? scores[0] : null;
    row.worst = scores.length ? scores.at(-1) : null;
    row.failures = row.candidates.filter((one) => one.failure).length;
  }
  const everything = (row) => {
    row.all ??= [row.name, words(row.question), words(row.reference), row.rubric, row.detail, ...(row.replies || []),
      ...row.candidates.flatMap((one) => [words(one.parts), ...(one.failure || []), ...(one.replies || [])])]
      .join("\n").toLowerCase();
    return row.all;
  };

  // ---- filters

  const asked = () => Object.fromEntries([...new FormData(form)].filter(([, value]) => value !== ""));
  const within = (value, low, high) => (low === undefined || value >= Number(low)) && (high === undefined || value <= Number(high));
  const fits = (one, q) => {
    if (q.outcome === "scored" && one.failure) return false;
    if (q.outcome === "failed" && !one.failure) return false;
    if (q.outcome && q.outcome !== "scored" && q.outcome !== "failed" && one.failure?.[0] !== q.outcome) return false;
    if ((q.low !== undefined || q.high !== undefined) && (one.score === undefined || !within(one.score, q.low, q.high))) return false;
    return within(one.length || 0, q.shortest, q.longest);
  };
  const matches = (row, q) => {
    if ((q.from !== undefined || q.until !== undefined) && (row.step === undefined || !within(row.step, q.from, q.until))) return 0;
    if (q.judge !== undefined && row.judge !== Number(q.judge)) return 0;
    if (q.pair !== undefined && (row.pair || "none") !== q.pair) return 0;
    if (q.text !== undefined && !everything(row).includes(q.text.toLowerCase())) return 0;
    const narrow = ["outcome", "low", "high", "shortest", "longest"].some((name) => q[name] !== undefined);
    return narrow ? row.candidates.filter((one) => fits(one, q)).length : Math.max(1, row.candidates.length);
  };
  const scored = (row) => row.candidates.filter((one) => one.score !== undefined).length;
  const narrow = (row) => (scored(row) > 1 ? row.best - row.worst : Number.MAX_VALUE); // one score has no spread
  const ORDERS = {
    low: (a, b) => (a.worst ?? Infinity) - (b.worst ?? Infinity) || 0,
    high: (a, b) => (b.best ?? -Infinity) - (a.best ?? -Infinity) || 0,
    spread: (a, b) => (b.best - b.worst) - (a.best - a.worst),
    flat: (a, b) => narrow(a) - narrow(b),
    failed: (a, b) => b.failures - a.failures,
  };
  const filter = () => {
    clearTimeout(waiting); // else it would undo a choice that was made since
    waiting = 0;
    const q = asked();
    let judged = 0;
    found = data.rows.filter((row) => {
      const count = matches(row, q);
      if (row.candidates.length && !row.pair) judged += count;
      return count;
    });
    if (ORDERS[q.order]) found.sort(ORDERS[q.order]);
    const plural = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
    const pairs = found.filter((row) => row.pair).length;
    $("count").textContent = `${plural(judged, "judgement")} in ${plural(found.length - pairs, "group")}` + (pairs ? `, ${plural(pairs, "pair")}` : "");
    history.replaceState(null, "", Object.keys(q).length ? "#" + new URLSearchParams(q) : location.pathname + location.search);
    room.style.height = `${found.length * ROW}px`;
    list.scrollTop = 0;
    chosen = -1;
    draw();
    choose(found.length ? 0 : -1);
  };

  // ---- the list: only rows that are seen are drawn

  const draw = () => {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
    const last = Math.min(found.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
    room.replaceChildren(...found.slice(first, last).map((row, offset) => line(row, first + offset)));
    list.toggleAttribute("aria-activedescendant", false);
    if ($(`row${chosen}`)) list.setAttribute("aria-activedescendant", `row${chosen}`);
  };
  const line = (row, index) => {
    const seen = [...(row.question || []), ...row.candidates.flatMap((one) => one.parts || [])].find((part) => part.picture !== undefined && part.picture !== null);
    const about = text([row.step === undefined ? null : `step ${row.step}`, row.name, row.pair && row.pair.replaceAll("_", " ")].filter(Boolean).join(" · "));
    const marks = row.candidates.slice(0, 16).map((one) =>
      make("span", one.failure ? "mark bad" : "mark", one.failure ? one.failure[0].replaceAll("_", " ") : one.score === undefined ? "–" : number(one.score)));
    const ask = text((words(row.question) || words(row.candidates[0]?.parts) || row.detail || "").slice(0, 300));
    about.classList.add("about");
    ask.classList.add("ask");
    const element = make("div", "row", make("div", "thumb", seen ? picture(seen) : null), about, ask, make("div", "marks", ...marks));
    element.id = `row${index}`;
    element.setAttribute("role", "option");
    element.setAttribute("aria-selected", String(index === chosen));
    element.setAttribute("aria-posinset", String(index + 1));
    element.setAttribute("aria-setsize", String(found.length));
    element.style.top = `${index * ROW}px`;
    element.addEventListener("click", () => { choose(index); read(); });
    return element;
  };
  const choose = (index) => {
    chosen = Math.min(Math.max(index, found.length ? 0 : -1), found.length - 1);
    const top = chosen * ROW;
    if (chosen >= 0 && top < list.scrollTop) list.scrollTop = top;
    if (chosen >= 0 && top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    draw();
    show(found[chosen]);
  };

  // ---- the chosen group

  const shown = (parts) => (parts || []).flatMap((part) => {
    if (typeof part === "string") return [text(part)];
    const seen = part.picture === undefined || part.picture === null ? [make("div", "kind", part.text || part.sound !== undefined ? `${part.kind}:` : `${part.kind}: not in this file; --record keeps it`)] : [picture(part)];
    if (part.sound !== undefined) seen.push(player(part));
    return part.text ? [...seen, text(part.text)] : seen;
  });
  const section = (title, inside) => (inside.length ? [make("h4", "", title), ...inside] : []);
  const said = (replies, open) => {
    if (!replies?.length) return null;
    const element = make("details", "", make("summary", "", "the judge's reasoning"), ...replies.map((reply) => {
      const one = text(reply);
      one.classList.add("reply");
      return one;
    }));
    element.open = open;
    return element;
  };
  // Candidates with equal scores share a place.
  const placed = (one, row) => {
    const place = 1 + row.candidates.filter((other) => other.score > one.score).length;
    return `${place}.${row.candidates.filter((other) => other.score === one.score).length > 1 ? " (tie)" : ""}`;
  };
  const card = (one, row, q) => {
    const numbered = row.detail && !row.pair;
    const rank = one.label || [one.score === undefined ? "" : placed(one, row), numbered ? `candidate ${one.number}` : ""].join(" ");
    const value = one.failure ? make("span", "score bad", one.failure[0].replaceAll("_", " ")) : make("span", "score", one.score === undefined ? "–" : number(one.score));
    const element = make("section", fits(one, q) ? "card" : "card off", make("header", "", make("span", "", rank), value));
    if (one.unit !== undefined) {
      const meter = make("meter");
      meter.value = one.unit;
      meter.setAttribute("aria-label", "score, 0 to 1");
      element.append(meter);
    }
    if (one.failure?.[1]) {
      const why = text(one.failure[1]);
      why.classList.add("bad");
      element.append(why);
    }
    element.append(...shown(one.parts), ...[said(one.replies, true)].filter(Boolean));
    return element;
  };
  const show = (row) => {
    if (!row) return detail.replaceChildren(make("p", "hint", "No judgement fits."));
    const close = make("button", "close", "Back");
    close.addEventListener("click", leave);
    const title = text([row.step === undefined ? null : `step ${row.step}`, row.name].filter(Boolean).join(" · "), "h3");
    const q = asked();
    const fate = row.pair ? [text(`${row.pair.replaceAll("_", " ")}${row.margin === undefined ? "" : `, margin ${number(row.margin)}`}`)] : [];
    detail.replaceChildren(close, title, ...section("Pair", fate), ...section("Why", row.pair && row.detail ? [text(row.detail)] : []),
      ...section("Question", shown(row.question)), ...section("Reference", shown(row.reference)),
      ...section("Rubric of this row", row.rubric ? [text(row.rubric)] : []),
      ...section(`Candidates, best first${row.scale ? `; scores from ${number(row.scale[0])} to ${number(row.scale[1])}` : ""}`, row.candidates.length ? [make("div", "cards", ...row.candidates.map((one) => card(one, row, q)))] : []),
      ...section("Comparisons", !row.pair && row.detail ? [text(row.detail)] : []),
      ...[said(row.replies, true)].filter(Boolean));
    if (data.judges > 1 && row.judge !== undefined) detail.append(make("p", "hint", `judge ${row.judge + 1}`));
    detail.scrollTop = 0;
  };
  const read = () => { detail.classList.add("open"); detail.focus(); };
  const leave = () => { detail.classList.remove("open"); list.focus(); };

  // ---- keys

  const page = () => Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
  const MOVES = { ArrowDown: () => chosen + 1, ArrowUp: () => chosen - 1, PageDown: () => chosen + page(), PageUp: () => chosen - page(), Home: () => 0, End: () => found.length - 1 };
  list.addEventListener("keydown", (event) => {
    if (waiting) filter(); // the key is about the rows that were asked for
    if (event.key === "Enter" && chosen >= 0) read();
    else if (MOVES[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) choose(MOVES[event.key]());
    else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName);
    if (event.key === "/" && !typing) { form.elements.text.focus(); event.preventDefault(); }
    if (event.key === "Escape" && (typing || detail.contains(document.activeElement))) leave();
  });
  const soon = (milliseconds) => { clearTimeout(waiting); waiting = setTimeout(filter, milliseconds); };
  form.addEventListener("input", () => soon(120));
  form.addEventListener("reset", () => soon(0)); // the fields are cleared after this event
  form.addEventListener("submit", (event) => { event.preventDefault(); filter(); list.focus(); });
  let drawing = 0;
  list.addEventListener("scroll", () => { cancelAnimationFrame(drawing); drawing = requestAnimationFrame(draw); }, { passive: true });
  addEventListener("resize", draw);

  // ---- a run that is not over

  const follow = async () => {
    try {
      const answer = await fetch("state", { cache: "no-store" });
      if (answer.ok && (await answer.text()) !== island.dataset.live) {
        const idle = scrollY < 200 && chosen <= 0 && !form.contains(document.activeElement) && !detail.contains(document.activeElement);
        if (idle) return location.reload();
        $("reload").hidden = false;
      }
    } catch { return; } // the server has ended
    setTimeout(follow, 2000);
  };
  $("reload").addEventListener("click", () => location.reload());
  if (island.dataset.live) setTimeout(follow, 2000);

  const kept = new URLSearchParams(location.hash.slice(1));
  for (const field of form.elements) if (field.name && kept.has(field.name)) field.value = kept.get(field.name);
  filter();
  document.documentElement.dataset.ready = "yes";
})();
