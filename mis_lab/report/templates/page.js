"use strict";
(() => {
  const root = document.documentElement;
  root.classList.remove("no-script");
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  // Light, dark, or as the system has it. Stored where the browser allows it for this file.
  const store = {
    get() { try { return localStorage.getItem("mis-lab-theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("mis-lab-theme", value); } catch { /* a private window: not kept */ } },
  };
  const themes = ["auto", "light", "dark"];
  const theme = document.querySelector(".theme");
  function useTheme(name) {
    root.dataset.theme = name;
    for (const sheet of document.styleSheets)
      for (const rule of sheet.cssRules)
        if (rule instanceof CSSMediaRule && /prefers-color-scheme|^screen$|^not all$/.test(rule.media.mediaText))
          rule.media.mediaText = name === "auto" ? "screen and (prefers-color-scheme: dark)" : name === "dark" ? "screen" : "not all";
    theme.textContent = { auto: "Auto", light: "Light", dark: "Dark" }[name];
    theme.setAttribute("aria-label", `Colours: ${name}. Change.`);
  }
  theme.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme) + 1) % themes.length];
    store.set(next);
    useTheme(next);
  });
  useTheme(themes.includes(store.get()) ? store.get() : "auto");

  // Heat-maps on every picture.
  const heat = all("[data-heat]");
  function useHeat(on) {
    root.classList.toggle("heat-on", on);
    heat.forEach((button) => button.setAttribute("aria-pressed", String(on)));
  }
  heat.forEach((button) => button.addEventListener("click", () => useHeat(!root.classList.contains("heat-on"))));

  // One of several: which images, which site, which measure.
  all(".segments").forEach((group) => {
    group.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      all("button", group).forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      const value = button.value;
      if (group.dataset.sets === "show") document.querySelector("#units").dataset.show = value;
      if (group.dataset.sets === "site") all("[data-site]").forEach((block) => { block.hidden = value !== "" && block.dataset.site !== value; });
      if (group.dataset.sets === "measure") all("[data-measure]").forEach((block) => { block.hidden = block.dataset.measure !== value; });
      if (group.dataset.sets === "setting") all("[data-setting]").forEach((block) => { block.hidden = block.dataset.setting !== value; });
    });
  });

  // Tables sort by the value behind each cell; cells without one stay last.
  function sorted(rows, of, direction) {
    const missing = (value) => value === null || value === "" || value === "–";
    return rows.slice().sort((a, b) => {
      const x = of(a), y = of(b);
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      return direction * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true }));
    });
  }
  function turn(header, heads) {
    const direction = header.getAttribute("aria-sort") === "descending" ? 1 : -1;
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    header.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    return direction;
  }
  all("table.sortable").forEach((table) => {
    const heads = all("thead th", table);
    heads.forEach((header, column) => header.querySelector("button").addEventListener("click", () => {
      const direction = turn(header, heads);
      const body = table.tBodies[0];
      const value = (row) => { const raw = row.cells[column].dataset.sort; return raw !== "" && !isNaN(raw) ? Number(raw) : raw; };
      body.append(...sorted([...body.rows], value, direction));
    }));
  });

  // The table of all units is drawn a page at a time.
  const source = document.querySelector("#units-data");
  const data = source ? JSON.parse(source.textContent) : null;
  if (data) {
    const perPage = 25;
    const table = document.querySelector("#table-units"), body = table.tBodies[0], heads = all("thead th", table);
    const pickSite = document.querySelector("#filter-site"), pickStatus = document.querySelector("#filter-status");
    const where = document.querySelector("#units-where"), before = document.querySelector("#units-before"), after = document.querySelector("#units-after");
    const field = [(row) => data.blocks[row[0]][0], (row) => data.blocks[row[0]][1], (row) => row[1], (row) => data.statuses[row[2]]];
    for (let column = 3; column < data.columns.length + 4; column++) field.push((row) => row[column]);
    let rows = data.rows, page = 0;
    const fill = (select, names) => names.forEach((name, value) => select.append(new Option(name, value)));
    fill(pickSite, data.blocks.map((block) => `${block[0]}, ${block[1]}s`));
    fill(pickStatus, data.statuses);
    function cell(row, text, css) { const td = row.insertCell(); td.className = css; td.textContent = text; return td; }
    function draw() {
      const kept = rows.filter((row) => (pickSite.value === "" || row[0] === Number(pickSite.value)) && (pickStatus.value === "" || row[2] === Number(pickStatus.value)));
      const pages = Math.max(1, Math.ceil(kept.length / perPage));
      page = Math.min(Math.max(page, 0), pages - 1);
      body.replaceChildren();
      kept.slice(page * perPage, (page + 1) * perPage).forEach((row) => {
        const [site, kind, css] = data.blocks[row[0]], line = body.insertRow();
        cell(line, site, "word code");
        cell(line, kind, `word kind ${css}`);
        const unit = cell(line, "", ""), card = data.cards[`${site}|${kind}|${row[1]}`];
        if (card) { const link = document.createElement("a"); link.href = `#${card}`; link.textContent = row[1]; unit.append(link); } else unit.textContent = row[1];
        cell(line, data.statuses[row[2]], "word");
        cell(line, row[3].toLocaleString("en").replaceAll(",", "\u202f"), "");
        row.slice(4).forEach((value) => cell(line, value === null ? "–" : value.toFixed(3).replace("-", "−"), ""));
      });
      where.textContent = kept.length ? `${page * perPage + 1} to ${Math.min((page + 1) * perPage, kept.length)} of ${kept.length.toLocaleString("en").replaceAll(",", "\u202f")}` : "none";
      before.disabled = page === 0;
      after.disabled = page >= pages - 1;
    }
    heads.forEach((header, column) => header.querySelector("button").addEventListener("click", () => {
      rows = sorted(data.rows, field[column], turn(header, heads));
      page = 0;
      draw();
    }));
    [pickSite, pickStatus].forEach((select) => select.addEventListener("change", () => { page = 0; draw(); }));
    before.addEventListener("click", () => { page--; draw(); });
    after.addEventListener("click", () => { page++; draw(); });
    heads[data.order + 1].querySelector("button").click();
  }

  // A unit that is linked to must be visible.
  function reveal() {
    const block = document.getElementById(decodeURIComponent(location.hash.slice(1)))?.closest("[data-site]");
    if (block?.hidden) document.querySelector('[data-sets="site"] button').click();
  }
  addEventListener("hashchange", reveal);

  // The section in view, marked in the navigation.
  const links = new Map(all("nav.sections a").map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    links.forEach((link) => link.removeAttribute("aria-current"));
    const link = links.get(entry.target.id);
    link?.setAttribute("aria-current", "true");
    const list = link?.closest("ul");
    if (list) list.scrollLeft = link.offsetLeft - list.clientWidth / 2;
  }), { rootMargin: "-30% 0px -60% 0px" });
  all("section[id]").forEach((section) => seen.observe(section));

  // Everything folded is printed unfolded.
  let folded = [];
  addEventListener("beforeprint", () => { folded = all("details:not([open])"); folded.forEach((one) => { one.open = true; }); });
  addEventListener("afterprint", () => folded.forEach((one) => { one.open = false; }));
})();
