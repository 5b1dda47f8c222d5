"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (name) => document.getElementById(name);

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function row(cells, kind = "td") {
  const made = document.createElement("tr");
  made.append(...cells.map((cell) => element(kind, cell)));
  made.cells[0].title = cells[0];  // the style cuts long names
  return made;
}

// Numbers by value, texts by letters; a cell without a number ("-") comes last either way.
function compare(a, b, sign) {
  const [x, y] = [Number(a), Number(b)];
  if (Number.isNaN(x) && Number.isNaN(y)) return a === b ? 0 : a === "-" ? 1 : b === "-" ? -1 : sign * a.localeCompare(b);
  if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
  return sign * (x - y);
}

function sortBy(table, column, button) {
  const title = button.parentElement;
  const descending = title.getAttribute("aria-sort") === "ascending";
  for (const other of title.parentElement.children) other.removeAttribute("aria-sort");
  title.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows];
  const cell = (one) => one.cells[column].textContent;
  rows.sort((one, other) => compare(cell(one), cell(other), descending ? -1 : 1));
  table.tBodies[0].append(...rows);
}

function fillClasses() {
  const table = byId("classes");
  const titles = document.createElement("tr");
  data.titles.forEach((title, column) => {
    const head = document.createElement("th");
    const button = element("button", title, {type: "button"});
    button.addEventListener("click", () => sortBy(table, column, button));
    head.append(button);
    titles.append(head);
  });
  table.createTHead().append(titles);
  table.createTBody().append(...data.rows.slice(0, -1).map((cells) => row(cells)));
  table.createTFoot().append(row(data.rows.at(-1)));
}

function fill() {
  byId("title").textContent = document.title;
  byId("about").textContent = data.about;
  byId("sentences").append(...data.sentences.map((text, place) => element("li", text, data.is_cost[place] ? {class: "cost"} : {})));
  fillClasses();
  byId("errors").createTHead().append(row(data.errors[0], "th"));
  byId("errors").createTBody().append(...data.errors.slice(1).map((cells) => row(cells)));
  for (const picture of data.pictures) {
    const figure = document.createElement("figure");
    const frame = element("div", "", picture.is_wide ? {class: "wide", tabindex: "0"} : {});
    frame.append(element("img", "", {src: picture.url, alt: picture.title}));
    figure.append(element("figcaption", picture.title), frame);
    byId("pictures").append(figure);
  }
  document.body.dataset.ready = "1";
}

fill();
