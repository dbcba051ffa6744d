// Search, filters and sorting of the model zoo's table; without JavaScript it is a plain table.
document.addEventListener("DOMContentLoaded", () => {
  const zoo = document.getElementById("zoo");
  const table = zoo && zoo.querySelector("table");
  if (!table) return;

  const heads = [...table.tHead.rows[0].cells];
  const names = heads.map((head) => head.textContent.trim());
  const rows = [...table.tBodies[0].rows].map((row) => ({
    row,
    values: [...row.cells].map((cell) => cell.textContent.trim()),
  }));
  const column = (name) => names.findIndex((head) => head.startsWith(name));

  const form = document.createElement("form");
  form.className = "zoo-filters";
  form.addEventListener("submit", (event) => event.preventDefault());
  const count = document.createElement("output");

  // each filter: whether a row's values fit what its control says
  const filters = [];
  const addControl = (title, control, fits) => {
    const label = document.createElement("label");
    label.append(title, control);
    form.append(label);
    filters.push((values) => control.value === "" || fits(values, control.value));
    control.addEventListener("input", show);
  };
  const input = (attributes) => Object.assign(document.createElement("input"), attributes);
  const choice = (index) => {
    const select = document.createElement("select");
    const known = new Set(rows.map(({ values }) => values[index]));
    const sorted = [...known].sort((a, b) => a.localeCompare(b));
    select.append(new Option("any", ""), ...sorted.map((value) => new Option(value)));
    return select;
  };

  addControl("Search", input({ type: "search", placeholder: "vim tiny" }), (values, text) => {
    const line = values.join(" ").toLowerCase();
    return text.toLowerCase().split(/\s+/).every((word) => line.includes(word));
  });
  for (const name of ["task", "family", "license"]) {
    const index = column(name);
    const title = name[0].toUpperCase() + name.slice(1);
    addControl(title, choice(index), (values, value) => values[index] === value);
  }
  const params = column("parameters");
  const most = input({ type: "number", min: 0, step: "any", placeholder: "50" });
  addControl("Parameters up to (M)", most, (values, value) => parseFloat(values[params]) <= Number(value));

  function show() {
    let shown = 0;
    for (const { row, values } of rows) {
      row.hidden = !filters.every((fits) => fits(values));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} shown`;
  }

  // numbers by size, all else by name; what has none comes last in either direction
  const sortBy = (index, down) => {
    const rank = ({ values }) => values[index];
    const isNumeric = heads[index].style.textAlign === "right";
    rows.sort((a, b) => {
      const [x, y] = [rank(a), rank(b)];
      if ((x === "-") !== (y === "-")) return x === "-" ? 1 : -1;
      const order = isNumeric ? parseFloat(x) - parseFloat(y) : x.localeCompare(y, "en", { numeric: true });
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows.map(({ row }) => row));
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[index].setAttribute("aria-sort", down ? "descending" : "ascending");
  };
  heads.forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(index, head.getAttribute("aria-sort") === "ascending"));
    head.append(button);
  });

  form.append(count);
  zoo.prepend(form);
  show();
});
