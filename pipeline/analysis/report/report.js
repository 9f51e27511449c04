// Sorts the samples, compares two pictures of each, and enlarges what the pointer is over: in a report those
// of one sample, in a suite the same spot of all methods.
"use strict";
const SHARE = 0.1; // of the picture's width and height in an enlargement
const browser = document.getElementById("browser");
const [order, left, right] = ["order", "left", "right"].map((id) => document.getElementById(id));

function sort() {
  if (!order.value) order.selectedIndex = 0;
  const [name, direction] = order.value.split(":");
  const value = (card) => (name in card.dataset ? direction * Number(card.dataset[name]) : Infinity);
  // Equal ones, and those without a value, stay in the order of the job.
  const rank = (a, b) => (value(a) === value(b) ? a.dataset.place - b.dataset.place : value(a) - value(b));
  browser.append(...[...browser.children].sort(rank));
}

function choose(card) {
  const views = [...card.querySelectorAll(".view")];
  const find = (kind) => views.find((view) => view.dataset.kind === kind);
  const sides = [find(left.value), find(right.value)];
  if (!sides[0] && !sides[1]) sides[1] = views.at(-1);
  views.forEach((view) => {
    view.classList.toggle("left", view === sides[0]);
    view.classList.toggle("right", view === sides[1] && view !== sides[0]);
  });
  card.classList.toggle("pair", Boolean(sides[0] && sides[1] && sides[0] !== sides[1]));
}

function prepare(card) {
  const slider = card.querySelector("input");
  if (!slider) return;
  const area = card.querySelector(".views");
  const lens = area.appendChild(Object.assign(document.createElement("div"), { className: "lens" }));
  const crops = card.querySelector(".crops");
  const canvases = [...card.querySelectorAll(".view")].map((view) => {
    const crop = crops.appendChild(document.createElement("div"));
    const canvas = crop.appendChild(Object.assign(document.createElement("canvas"), { width: 160, height: 160 }));
    crop.append(view.textContent.trim());
    return [view.querySelector("img"), canvas];
  });
  let y = 0.5;

  function cut() {
    area.style.setProperty("--cut", `${slider.value}%`);
  }

  function enlarge(x) {
    const [atX, atY] = [x, y].map((at) => Math.min(Math.max(at - SHARE / 2, 0), 1 - SHARE));
    Object.assign(lens.style, { left: `${100 * atX}%`, top: `${100 * atY}%` });
    for (const [picture, canvas] of canvases) {
      const context = canvas.getContext("2d");
      const [w, h] = [picture.naturalWidth, picture.naturalHeight];
      context.imageSmoothingEnabled = false;
      context.drawImage(picture, atX * w, atY * h, SHARE * w, SHARE * h, 0, 0, canvas.width, canvas.height);
    }
  }

  function follow(event) {
    const box = area.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width;
    y = (event.clientY - box.top) / box.height;
    if (event.buttons) {
      slider.value = 100 * x;
      cut();
    }
    enlarge(x);
  }

  slider.addEventListener("input", () => {
    cut();
    enlarge(slider.value / 100);
  });
  area.addEventListener("pointerdown", (event) => {
    area.setPointerCapture(event.pointerId);
    follow(event);
  });
  area.addEventListener("pointermove", follow);
  area.addEventListener("dragstart", (event) => event.preventDefault()); // else the browser drags the picture
  window.addEventListener("load", () => enlarge(0.5));
}

function enlargeTogether(section) {
  const zoom = section.querySelector("select");
  zoom.addEventListener("change", () => section.style.setProperty("--zoom", zoom.value));
  for (const row of section.querySelectorAll(".same")) {
    let spot = [50, 50];
    const move = (to) => {
      spot = to.map((at) => Math.min(Math.max(at, 0), 100));
      ["--x", "--y"].forEach((axis, i) => row.style.setProperty(axis, `${spot[i]}%`));
    };
    const follow = (event) => {
      const box = event.target.closest(".spot")?.getBoundingClientRect();
      if (box) move([(100 * (event.clientX - box.left)) / box.width, (100 * (event.clientY - box.top)) / box.height]);
    };
    row.addEventListener("pointermove", follow);
    row.addEventListener("pointerdown", follow);
    row.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-5, 0], ArrowRight: [5, 0], ArrowUp: [0, -5], ArrowDown: [0, 5] }[event.key];
      if (!step) return;
      event.preventDefault(); // else the page scrolls
      move(spot.map((at, i) => at + step[i]));
    });
  }
}

document.documentElement.classList.add("js");
for (const picture of document.querySelectorAll("img[data-of]")) {
  picture.src = document.getElementById(picture.dataset.of).src;
}
document.querySelectorAll(".pictures").forEach(enlargeTogether);
if (browser) {
  order.value = location.hash.slice(1);
  order.addEventListener("change", sort);
  for (const select of [left, right]) {
    select.addEventListener("change", () => [...browser.children].forEach(choose));
  }
  [...browser.children].forEach(prepare);
  [...browser.children].forEach(choose);
  sort();
}
