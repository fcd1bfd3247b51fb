"use strict";
/* Tables sort by a click on a column's name; a second click turns the order. Empty cells stay last. */
(function () {
  function valueOf(row, column, numbers) {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    if (numbers) return null;
    const text = cell.textContent.trim();
    return text === "" || text === "–" ? null : text;
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  }

  function sort(table, column, head) {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = Array.from(body.rows, (row) => [valueOf(row, column, head.classList.contains("num")), row]);
    rows.sort(function (x, y) {
      if (x[0] === null || y[0] === null) return (x[0] === null) - (y[0] === null);
      return down ? compare(y[0], x[0]) : compare(x[0], y[0]);
    });
    body.append(...rows.map((pair) => pair[1]));
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    Array.from(table.tHead.rows[0].cells).forEach(function (head, column) {
      head.querySelector("button").addEventListener("click", () => sort(table, column, head));
    });
  }

  /* A scrolling box is a stop of the keyboard only where there is something to scroll. */
  function stops() {
    for (const box of document.querySelectorAll(".scroll")) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  }
  addEventListener("resize", stops);
  addEventListener("toggle", stops, true);
  stops();
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => (d.open = true)));
})();
