// The picture of the page: compares, zooms, and tells of clicks and drags. Runs once in its gr.HTML, which gives
// `element`, `props`, `trigger` and `watch`. Places are shares of the shown picture, from its upper left.
//
// props.value: null, or {before, after: files; faces: [[left, top, right, bottom]], chosen: index;
// handles: [{number, label, x, y}]; view: name of what the pictures show; edit: name of the edit in this view}.

const stage = element.querySelector('.me-stage');
const frame = stage.querySelector('.me-frame');
const [before, after] = frame.querySelectorAll('img');
const marks = frame.querySelector('.me-marks');
const divider = frame.querySelector('.me-divider');
const KEY_STEP = 5; // percent a key press
const CLICK = 4; // px that a click may move
const ZOOMS = [1, 8];
let drag = null; // {id, moved, ...} of the pointer that is down
let drags = 0;
let position = 0; // percent of the width that shows the picture before
let zoom = { scale: 1, x: 0, y: 0 };
let shown = 0; // updates so far
let view = null;
let told = null; // the view and edit of which `end` told last

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function place(event, box = frame.getBoundingClientRect()) {
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
}

function compare(percent) {
    position = clamp(percent, 0, 100);
    frame.style.setProperty('--divider', `${position}%`);
    divider.setAttribute('aria-valuenow', Math.round(position));
}

function look(scale, x, y) {
    const box = stage.getBoundingClientRect();
    const room = { x: ((scale - 1) * box.width) / 2, y: ((scale - 1) * box.height) / 2 };
    zoom = { scale, x: clamp(x, -room.x, room.x), y: clamp(y, -room.y, room.y) };
    frame.style.transform = `translate(${zoom.x}px, ${zoom.y}px) scale(${scale})`;
    frame.style.setProperty('--unzoom', 1 / scale);
}

// Pictures change only when they are decoded, so that nothing flashes
async function load(image, file) {
    if (image.getAttribute('src') === file.url) return;
    const next = new Image();
    next.src = file.url;
    await next.decode().catch(() => {}); // a picture deleted meanwhile shows as missing
    return () => image.setAttribute('src', file.url);
}

function mark(value) {
    const framed = value.faces.map(([left, top, right, bottom], index) => {
        const box = document.createElement('span');
        box.className = 'me-face' + (index === value.chosen ? ' me-chosen' : '');
        Object.assign(box.style, {
            left: `${100 * left}%`, top: `${100 * top}%`,
            width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`,
        });
        box.append(Object.assign(document.createElement('b'), { textContent: index + 1 }));
        return box;
    });
    const dots = value.handles.map(({ number, label, x, y }) => {
        const dot = document.createElement('span');
        dot.className = 'me-handle';
        dot.dataset.number = number;
        dot.title = label;
        Object.assign(dot.style, { left: `${100 * x}%`, top: `${100 * y}%` });
        return dot;
    });
    marks.replaceChildren(...framed, ...dots);
}

async function show() {
    const value = props.value;
    stage.classList.toggle('me-empty', !value);
    if (!value) return;
    const update = ++shown;
    const changes = await Promise.all([load(before, value.before), load(after, value.after)]);
    if (update !== shown) return;
    changes.forEach(change => change?.());
    frame.style.setProperty('--ratio', value.ratio);
    if (value.view !== view) {
        view = value.view;
        look(1, 0, 0);
        compare(0);
    }
    if (drag?.handle === undefined) mark(value);
    element.dataset.shown = update; // for tests
    const edit = [value.view, ...value.edit].join();
    if (edit !== told) {
        told = edit;
        trigger('end');
    }
}
watch('value', show);
show();

// --- pointers ---

frame.addEventListener('pointerdown', event => {
    if (drag?.handle) breakOff();
    if (event.button !== 0 || !event.isPrimary || drag) return;
    const handle = event.target.closest('.me-handle');
    drag = { id: event.pointerId, x: event.clientX, y: event.clientY, moved: false, from: { ...zoom } };
    if (handle) {
        const box = frame.getBoundingClientRect(); // of the whole drag: a line of text more above moves the picture
        const { x, y } = place(event, box);
        Object.assign(drag, { handle, box, number: ++drags, value: props.value, down: { x, y }, start: {
            x: parseFloat(handle.style.left) / 100 - x,
            y: parseFloat(handle.style.top) / 100 - y,
        } });
        handle.classList.add('me-held');
    }
    drag.divider = event.target.closest('.me-divider') !== null;
    frame.setPointerCapture(event.pointerId);
    if (!drag.divider) event.preventDefault();
});

frame.addEventListener('pointermove', event => {
    if (event.pointerId !== drag?.id) return;
    drag.moved ||= Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > CLICK;
    if (drag.divider) compare(100 * place(event).x);
    else if (drag.handle) tell(event, false);
    else if (zoom.scale > 1)
        look(zoom.scale, drag.from.x + event.clientX - drag.x, drag.from.y + event.clientY - drag.y);
});

function tell(event, ends) {
    if (!drag.moved) return;
    if (event.type !== 'pointercancel') drag.at = place(event, drag.box); // that has no place
    const [x, y] = [clamp(drag.at.x + drag.start.x, 0, 1), clamp(drag.at.y + drag.start.y, 0, 1)];
    Object.assign(drag.handle.style, { left: `${100 * x}%`, top: `${100 * y}%` });
    const { chosen, view } = drag.value;
    const number = Number(drag.handle.dataset.number);
    const detail = { of: 'handle', number, x, y, drag: drag.number, face: chosen, view, ends };
    document.dispatchEvent(new CustomEvent('me-drag', { detail }));
}

// Two fingers zoom: what the first one moved goes back
function breakOff() {
    drag.at = drag.down;
    end({ type: 'pointercancel', pointerId: drag.id });
}

function end(event) {
    if (event.pointerId !== drag?.id) return;
    drag.handle?.classList.remove('me-held');
    if (drag.handle) tell(event, true);
    else if (!drag.divider && !drag.moved && event.type === 'pointerup') trigger('select', place(event));
    drag = null;
}
frame.addEventListener('pointerup', end);
frame.addEventListener('pointercancel', end);

stage.addEventListener('wheel', event => {
    if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
    event.preventDefault();
    const box = stage.getBoundingClientRect();
    const middle = { x: box.left + box.width / 2, y: box.top + box.height / 2 };
    const scale = clamp(zoom.scale * Math.exp(-event.deltaY / 300), ...ZOOMS);
    const share = scale / zoom.scale;
    look(scale, event.clientX - middle.x - share * (event.clientX - middle.x - zoom.x),
         event.clientY - middle.y - share * (event.clientY - middle.y - zoom.y));
}, { passive: false });
frame.addEventListener('dblclick', () => look(1, 0, 0));

divider.addEventListener('keydown', event => {
    const to = { ArrowLeft: position - KEY_STEP, ArrowDown: position - KEY_STEP, ArrowRight: position + KEY_STEP,
        ArrowUp: position + KEY_STEP, Home: 0, End: 100 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    compare(to);
});
