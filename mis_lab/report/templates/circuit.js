"use strict";
(() => {
  const graph = document.querySelector("svg.graph");
  const box = document.querySelector(".graph-box"), card = document.querySelector(".graph-card");
  const nodes = [...graph.querySelectorAll(".graph-node")], edges = [...graph.querySelectorAll(".edge")];
  const byStrength = edges.slice().sort((a, b) => a.dataset.rank - b.dataset.rank);
  const atFirst = new Set(edges.filter((edge) => !edge.classList.contains("extra")));
  // The largest effects first: what a smaller circuit keeps.
  const byEffect = nodes.slice().sort((a, b) => a.dataset.node - b.dataset.node);
  const ofNode = (name) => nodes.find((node) => node.dataset.node === name);
  const shown = (one) => !one.classList.contains("off");

  // How many edges, how many nodes.
  const share = document.querySelector("#graph-edges"), first = document.querySelector("#graph-first");
  const edgesTold = document.querySelector("#graph-edges-told");
  const top = document.querySelector("#graph-nodes"), nodesTold = document.querySelector("#graph-nodes-told");
  function tellEdges() {
    if (!edgesTold) return;
    const seen = edges.filter((edge) => shown(edge) && !edge.classList.contains("extra")).length;
    edgesTold.textContent = `${seen} of ${edges.length}`;
  }
  function useEdges(some) {
    edges.forEach((edge) => edge.classList.toggle("extra", !some.has(edge)));
    first?.setAttribute("aria-pressed", String(some === atFirst));
    tellEdges();
  }
  function useNodes(n) {
    byEffect.forEach((node, place) => {
      node.classList.toggle("off", place >= n);
      node.setAttribute("tabindex", place < n ? "0" : "-1");
    });
    const gone = (name) => name !== "goal" && !shown(ofNode(name));
    edges.forEach((edge) => edge.classList.toggle("off", gone(edge.dataset.from) || gone(edge.dataset.to)));
    nodesTold.textContent = `${n} of ${nodes.length}`;
    tellEdges();
  }
  share?.addEventListener("input", () => {
    useEdges(new Set(byStrength.slice(0, Math.round(edges.length * share.value / 100))));
  });
  first?.addEventListener("click", () => {
    share.value = Math.round(100 * atFirst.size / edges.length);
    useEdges(atFirst);
  });
  top.addEventListener("input", () => useNodes(Number(top.value)));
  useNodes(Number(top.value));  // a browser may keep where sliders stood
  if (share && Number(share.value) !== Math.round(100 * atFirst.size / edges.length)) share.dispatchEvent(new Event("input"));

  const key = document.querySelector(".mis-key");
  document.querySelector('[data-sets="graph-colour"]')?.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    graph.classList.toggle("by-mis", button.value === "mis");
    key.hidden = button.value !== "mis";
  });

  // One node: its edges and their other ends stay, everything else fades; its images come up beside it.
  function line(edge, arrow, end) {
    const item = document.createElement("li");
    const text = edge.querySelector("title").textContent, [names, weight] = [text.slice(0, text.lastIndexOf(": ")), text.slice(text.lastIndexOf(": ") + 2)];
    item.className = edge.classList.contains("pos") ? "pos" : "neg";
    item.textContent = `${arrow} ${names.split(" → ")[end]}  ${weight}`;
    return item;
  }
  function fill(name, near) {
    const source = document.querySelector(`[data-card="${name}"]`).cloneNode(true);
    const plain = source.querySelector(".tiles");
    source.removeAttribute("data-card");
    source.querySelectorAll("[tabindex]").forEach((one) => one.removeAttribute("tabindex"));
    if (plain?.querySelector("i")) {
      const heat = plain.cloneNode(true);
      heat.classList.add("heat-on");
      plain.after(heat);
    }
    const list = document.createElement("ul");
    const strongest = near.slice().sort((a, b) => a.dataset.rank - b.dataset.rank);
    strongest.filter((edge) => edge.dataset.to === name).slice(0, 3).forEach((edge) => list.append(line(edge, "←", 0)));
    strongest.filter((edge) => edge.dataset.from === name).slice(0, 3).forEach((edge) => list.append(line(edge, "→", 1)));
    card.replaceChildren(source, list);
  }
  function look(node) {
    const name = node.dataset.node;
    const near = edges.filter((edge) => shown(edge) && (edge.dataset.from === name || edge.dataset.to === name));
    const ends = new Set(near.flatMap((edge) => [edge.dataset.from, edge.dataset.to]).concat(name));
    graph.classList.add("looking");
    edges.forEach((edge) => edge.classList.toggle("near", near.includes(edge)));
    nodes.forEach((other) => other.classList.toggle("near", ends.has(other.dataset.node)));
    fill(name, near);
    card.hidden = false;
    const at = node.getBoundingClientRect(), around = box.getBoundingClientRect();
    const right = at.right - around.left + 12, left = at.left - around.left - card.offsetWidth - 12;
    const most = around.width - card.offsetWidth;
    card.style.left = `${Math.max(0, Math.min(most, right <= most || left < 0 ? right : left))}px`;
    const middle = at.top - around.top + at.height / 2 - card.offsetHeight / 2;
    card.style.top = `${Math.max(0, Math.min(Math.max(0, around.height - card.offsetHeight), middle))}px`;
  }
  function rest() {
    const focused = document.activeElement?.closest?.(".graph-node");
    if (focused) return look(focused);
    graph.classList.remove("looking");
    card.hidden = true;
  }
  nodes.forEach((node) => {
    node.addEventListener("mouseenter", () => look(node));
    node.addEventListener("mouseleave", rest);
    node.addEventListener("focus", () => look(node));
    node.addEventListener("blur", () => requestAnimationFrame(rest));
    node.addEventListener("keydown", (event) => { if (event.key === "Escape") node.blur(); });
  });
})();
