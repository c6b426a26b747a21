"use strict";
(() => {
  const PAGE = 24;      // children shown at once
  const PICTURES = 8;   // thumbnails of a node
  const { levels, videos, thumbnails, leaves } = JSON.parse(document.getElementById("data").textContent);
  const tree = document.getElementById("tree");
  if (!tree) return;

  const children = levels.map(() => []);
  const roots = [];
  levels.forEach((level, depth) => {
    level.labels.forEach((_, node) => {
      if (depth === 0) { roots.push(node); return; }
      const siblings = children[depth - 1];
      (siblings[level.parent[node]] ||= []).push(node);
    });
  });

  const element = (name, text, kind) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const counted = (count, name) => `${count.toLocaleString("en")} ${name}${count === 1 ? "" : "s"}`;
  const percent = (share) => `${(100 * share).toPrecision(3)} %`;
  const length = (hours) => (hours >= 1 ? `${hours.toFixed(1)} h` : `${(60 * hours).toFixed(1)} min`);

  const keys = {
    drawn: (level, node) => level.drawn[node],
    natural: (level, node) => level.natural[node],
    gain: (level, node) => level.drawn[node] / level.natural[node],
  };
  let key = keys.drawn;
  const sorted = (depth, nodes) => [...nodes].sort((a, b) => key(levels[depth], b) - key(levels[depth], a) || a - b);

  // Of the children in turn, the most drawn first: what stands for a node.
  const known = levels.map(() => []);
  const examples = (depth, node) => {
    if (depth === levels.length - 1) return leaves[node] || [];
    if (known[depth][node]) return known[depth][node];
    const below = [...(children[depth][node] || [])]
      .sort((a, b) => levels[depth + 1].drawn[b] - levels[depth + 1].drawn[a] || a - b)
      .map((child) => examples(depth + 1, child));
    const found = [];
    for (let turn = 0; turn < PICTURES && found.length < PICTURES; turn++)
      for (const each of below)
        if (turn < each.length && found.length < PICTURES) found.push(each[turn]);
    return (known[depth][node] = found);
  };

  const figure = (number) => {
    const [video, time, width, height, jpeg, reason] = thumbnails[number];
    const made = element("figure");
    if (jpeg) {
      const picture = element("img");
      picture.src = `data:image/jpeg;base64,${jpeg}`;
      picture.alt = `${videos[video]} at ${time}`;
      picture.width = width;
      picture.height = height;
      made.append(picture);
    } else made.append(element("p", `No picture: ${reason}`, "none"));
    const caption = element("figcaption");
    caption.append(element("bdi", videos[video]), `, ${time}`);
    made.append(caption);
    return made;
  };

  const list = (parent, depth, nodes) => {
    const order = sorted(depth, nodes);
    let shown = 0;
    const button = element("button");
    button.type = "button";
    const more = () => {
      for (const node of order.slice(shown, shown + PAGE)) {
        const made = branch(depth, node);
        if (button.parentNode === parent) parent.insertBefore(made, button); else parent.append(made);
      }
      const first = parent.querySelectorAll(":scope > details")[shown];
      shown = Math.min(shown + PAGE, order.length);
      if (shown < order.length) {
        button.textContent = `Show ${Math.min(PAGE, order.length - shown)} more of ${order.length}`;
        if (button.parentNode !== parent) parent.append(button);
      } else if (button.parentNode === parent) {
        button.remove();
        if (first) first.querySelector("summary").focus();
      }
    };
    button.addEventListener("click", more);
    more();
  };

  const branch = (depth, node) => {
    const level = levels[depth];
    const made = element("details");
    const summary = element("summary");
    summary.append(element("bdi", level.labels[node]));
    const below = (children[depth] || [])[node] || [];
    const facts = [
      `${percent(level.drawn[node])} drawn`,
      `${percent(level.natural[node])} of frames`,
      counted(level.segments[node], "segment"),
      length(level.hours[node]),
    ];
    if (below.length) facts.push(`${below.length.toLocaleString("en")} below`);
    summary.append(" ", element("span", facts.join(" · "), "figures"));
    made.append(summary);
    made.addEventListener("toggle", () => {
      if (!made.open || made.dataset.filled) return;
      made.dataset.filled = "yes";
      const numbers = examples(depth, node);
      const pictures = element("div", undefined, "pictures");
      if (numbers.length) pictures.append(...numbers.map(figure));
      else pictures.append(element("p", "No thumbnail: more of them fit with --report.thumbnails.", "none"));
      made.append(pictures);
      if (below.length) list(made, depth + 1, below);
    });
    return made;
  };

  const draw = () => { tree.replaceChildren(); list(tree, 0, roots); };
  document.getElementById("order").addEventListener("change", (event) => {
    key = keys[event.target.value];
    draw();
  });
  draw();
})();
